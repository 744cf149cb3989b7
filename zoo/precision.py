"""`precision: auto` in a recipe: which number format the machine trains well in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Device:
    """What decides about precision.

    Attributes:
        kind: "cpu", "cuda", "mps", or another of Lightning's accelerators.
        name: what to call it.
        capability: CUDA's compute capability.
        bf16: whether it multiplies bfloat16 natively.
    """

    kind: str
    name: str
    capability: tuple[int, int] = (0, 0)
    bf16: bool = False


Precision = Literal["bf16-mixed", "16-mixed", "32-true"]


def choose_precision(device: Device) -> tuple[Precision, str]:
    """The precision for a device, and why in one line.

    bfloat16 has float32's range and needs no loss scaling; float16 does, and is quick from tensor cores (Volta,
    capability 7.0) on. Elsewhere, also on CPUs, half precision is slower than float32 or not supported throughout.
    """
    if device.kind == "cuda" and device.bf16:
        return "bf16-mixed", f"{device.name} multiplies bfloat16"
    if device.kind == "cuda" and device.capability >= (7, 0):
        return "16-mixed", f"{device.name} has float16 tensor cores but no bfloat16; the loss is scaled"
    if device.kind == "cuda":
        return "32-true", f"{device.name} has no fast half precision"
    return "32-true", f"{device.name} is not faster with half precision"


def find_device(accelerator: str = "auto") -> Device:
    """The device that Lightning will choose for an `accelerator` setting."""
    import torch

    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        # With several kinds of GPU the weakest decides.
        count = torch.cuda.device_count()
        capability, index = min((torch.cuda.get_device_capability(i), i) for i in range(count))
        name = torch.cuda.get_device_name(index)
        return Device("cuda", f"the {name}", capability, bf16=capability >= (8, 0))
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return Device("mps", "Apple's GPU")
    return Device("cpu", "a CPU") if accelerator in ("auto", "cpu") else Device(accelerator, accelerator)

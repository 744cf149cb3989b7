"""Counting the work of a step, and what a GPU could do at best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten

# Dense peaks of NVIDIA's data sheets, FLOP/s. Lightning's table gives these two with sparsity, and knows the H200 under
# no name that the driver uses.
_HALF, _SINGLE = (torch.bfloat16, torch.float16), torch.float32
_PEAKS: dict[str, dict[Any, float]] = {
    "h200": {**dict.fromkeys(_HALF, 989.4e12), "tfloat32": 494.7e12, _SINGLE: 66.9e12},
    "h100 nvl": {**dict.fromkeys(_HALF, 835.5e12), "tfloat32": 417.5e12, _SINGLE: 60.0e12},
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> int | None:
    """Floating-point operations a second that `device` could do in matrix products of `dtype`; None if unknown."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device).lower()
        for chip, peaks in _PEAKS.items():
            if chip in name:
                tf32 = dtype is _SINGLE and torch.get_float32_matmul_precision() != "highest"
                peak = peaks.get("tfloat32" if tf32 else dtype)
                return None if peak is None else int(peak)
    return get_available_flops(device, dtype)


def count_flops(function: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in `function()`.

    As model FLOPs are counted: two for a multiplication with addition, and four products for the backward pass of
    attention, whether or not a fused kernel computes its scores a second time.
    """
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        function()
    return counter.get_total_flops()


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Shapes (..., length, width). Scores, then the mean of the values."""
    rows = 1
    for size in query[:-1]:
        rows *= size
    return 2 * rows * key[-2] * (query[-1] + value[-1])


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return 2 * _attention(query, key, value)


_FORWARD = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_ATTENTION: dict[Any, Callable[..., int]] = {
    getattr(aten, f"_scaled_dot_product_{kind}{suffix}"): formula
    for kind in _FORWARD
    for suffix, formula in (("", _attention), ("_backward", _attention_backward))
}

"""How much of a network a fine-tuning task trains: all of it, its last blocks, its head alone, or LoRA's adapters.

Every task takes `tuning`, a mapping such as `{mode: partial, blocks: 2}`; layer-wise decay is each task's own argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, did_you_mean
from zoo.extras import require
from zoo.module import StateDict, ZooModule

MODES = ("full", "frozen", "partial", "lora")
HEADS = ("head.", "fc.", "fc_norm.")
"""Parts of timm's networks that a task trains whatever the mode: they start from nothing."""


@dataclass(frozen=True)
class Tuning:
    """Settings of `tuning`.

    Attributes:
        mode: "full" trains everything; "frozen" the head alone; "partial" the head and the last `blocks` blocks of the
            backbone; "lora" the head and low-rank updates of the backbone's linear layers and convolutions
            (Hu et al. 2021), of `rank`, scaled by `alpha` / `rank`, with `dropout` before them.
    """

    mode: str = "full"
    blocks: int = 2
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0

    @classmethod
    def of(cls, given: Mapping[str, Any] | None) -> Tuning:
        """From a task's argument. Raises `ZooError` for a name or value that it does not take."""
        known = [field.name for field in fields(cls)]
        for key in given or {}:
            if key not in known:
                raise ZooError(f"model.tuning has no {key!r}; it takes {', '.join(known)}.{did_you_mean(key, known)}")
        try:
            tuning = cls(**(given or {}))
            numbers = (int(tuning.blocks), int(tuning.rank), float(tuning.alpha), float(tuning.dropout))
        except (TypeError, ValueError) as error:
            raise ZooError(f"model.tuning: blocks, rank, alpha and dropout are numbers ({error}).") from error
        if tuning.mode not in MODES:
            close = did_you_mean(tuning.mode, MODES)
            raise ZooError(f"model.tuning.mode is one of {', '.join(MODES)}, not {tuning.mode!r}.{close}")
        if numbers[0] < 1 or numbers[1] < 1 or numbers[2] <= 0 or not 0 <= numbers[3] < 1:
            raise ZooError(
                "model.tuning: blocks and rank are at least 1, alpha lies above 0, dropout from 0 to below 1."
            )
        return tuning


class TunedTask(ZooModule):
    """Base of the fine-tuning tasks: trains what the hyper-parameter `tuning` says.

    Frozen parts stay in eval mode, so that batch norm keeps its statistics and dropout is off there. A LoRA run trains
    and resumes with its adapters; `zoo.load` of it merges them, so what is loaded is the plain network.
    """

    _tuned: bool = False
    _asleep: tuple[nn.Module, ...] = ()

    @property
    def tuning(self) -> Tuning:
        """The settings."""
        return Tuning.of(self.hparams.get("tuning"))

    def configure_model(self) -> None:
        # After `setup`, which may have built a head for the data, and before checkpoint and optimiser.
        super().configure_model()
        if not self._tuned:
            self._tuned = True
            self._asleep = tuple(apply_tuning(self.backbone, self.tuning))
            self.train(self.training)

    def train(self, mode: bool = True) -> TunedTask:
        super().train(mode)
        for part in self._asleep:
            part.eval()
        return self

    def load_weights(self, state_dict: StateDict, source: str = "these weights") -> None:
        """As `ZooModule.load_weights`; LoRA's updates are merged into the weights that they belong to."""
        super().load_weights(merge_lora(state_dict, self.tuning.alpha), source)


def apply_tuning(backbone: nn.Module, tuning: Tuning) -> list[nn.Module]:
    """Freezes what `tuning` does not train, in place; returns the parts that stay in eval mode.

    Raises `ZooError` if the backbone has no blocks to tell apart (partial) or no layer for LoRA.
    """
    if tuning.mode == "full":
        return []
    head = {
        name for name, parameter in backbone.named_parameters() if name.startswith(HEADS) and parameter.requires_grad
    }
    if tuning.mode == "lora":
        _add_lora(backbone, tuning)
        for name, parameter in backbone.named_parameters():
            if name in head:
                parameter.requires_grad_(True)
        return list(_frozen_statistics(backbone))
    kept: list[str] = list(head)
    if tuning.mode == "partial":
        blocks = blocks_of(backbone)
        if tuning.blocks > len(blocks):
            raise ZooError(
                f"The backbone has {len(blocks)} blocks: model.tuning.blocks is at most that, not {tuning.blocks}."
            )
        prefixes = [f"{name}." for name, _ in blocks[-tuning.blocks :]]
        prefixes += [f"{name}." for name in _after_blocks(backbone, blocks)]
        kept += [
            name for name, p in backbone.named_parameters() if name.startswith(tuple(prefixes)) and p.requires_grad
        ]
    chosen = set(kept)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in chosen)
    return [
        part
        for name, part in backbone.named_modules()
        if next(part.parameters(), None) is not None
        and not any(parameter.startswith(f"{name}." if name else "") for parameter in chosen)
    ]


def blocks_of(backbone: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, block) of a network's repeated blocks, from input to output: the longest list of alike modules.

    ResNets have four (timm: `layer1` to `layer4`), whose parts count one by one.
    """
    stages = [name for name in ("layer1", "layer2", "layer3", "layer4") if hasattr(backbone, name)]
    if len(stages) == 4:
        return [(f"{stage}.{i}", part) for stage in stages for i, part in enumerate(getattr(backbone, stage))]
    lists: list[list[tuple[str, nn.Module]]] = []
    for name, module in backbone.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(part) for part in module}) == 1:
            lists.append([(f"{name}.{i}", part) for i, part in enumerate(module)])
    longest = max(lists, key=lambda parts: sum(p.numel() for _, part in parts for p in part.parameters()), default=[])
    if not longest:
        raise ZooError(f"{type(backbone).__name__} has no blocks in a row: use model.tuning.mode frozen, lora or full.")
    return longest


def _after_blocks(backbone: nn.Module, blocks: Sequence[tuple[str, nn.Module]]) -> Iterator[str]:
    """Top-level parts that come after the blocks: a final norm."""
    top = blocks[-1][0].split(".")[0]
    names = [name for name, _ in backbone.named_children()]
    yield from names[names.index(top) + 1 :]


def _add_lora(backbone: nn.Module, tuning: Tuning) -> None:
    require("peft", extra="lora", why="model.tuning.mode lora uses peft")
    from peft import LoraConfig, inject_adapter_in_model

    # Attention that torch computes by itself (nn.MultiheadAttention) reads its layers' weights, not their outputs.
    inside = {
        f"{name}.{child}" if name else child
        for name, module in backbone.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_modules()
        if child
    }
    # So do modules that say so.
    inside |= {
        f"{name}.{child}"
        for name, module in backbone.named_modules()
        for child in getattr(module, "weights_read_directly", ())
    }
    targets = [
        name
        for name, module in backbone.named_modules()
        if name not in inside
        and not f"{name}.".startswith(HEADS)
        and (type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1))
        and module.weight.requires_grad
    ]
    if not targets:
        raise ZooError(
            f"{type(backbone).__name__} has no linear layer for LoRA: use model.tuning.mode partial or full."
        )
    config = LoraConfig(
        r=int(tuning.rank),
        lora_alpha=tuning.alpha,
        lora_dropout=float(tuning.dropout),
        target_modules=targets,  # type: ignore[arg-type]
    )
    inject_adapter_in_model(config, backbone)


def _frozen_statistics(backbone: nn.Module) -> Iterator[nn.Module]:
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and not any(p.requires_grad for p in module.parameters()):
            yield module


def merge_lora(state: StateDict, alpha: float) -> StateDict:
    """A state dict with LoRA's updates, W + alpha / rank * B A, in the plain names; one without them as it is.

    For linear layers A is (rank, in), B (out, rank); for convolutions (rank, in, k, k) and (out, rank, 1, 1).
    """
    if not any(".lora_A." in key for key in state):
        return state
    merged: StateDict = {}
    for key, value in state.items():
        if ".lora_" in key:
            continue
        plain = key.replace(".base_layer.", ".")
        stem = key.removesuffix(".base_layer.weight")
        down = state.get(f"{stem}.lora_A.default.weight") if stem != key else None
        if down is not None:
            up = state[f"{stem}.lora_B.default.weight"]
            value = value + alpha / down.shape[0] * _product(up.float(), down.float()).to(value.dtype)
        merged[plain] = value
    return merged


def _product(up: Tensor, down: Tensor) -> Tensor:
    if down.ndim == 2:
        return up @ down
    return torch.einsum("or,rihw->oihw", up.flatten(1), down)

"""Official BM-MAE state dict <-> ours: the same names, the encoder's under `backbone.`."""

from __future__ import annotations

from torch import Tensor

_ENCODER = ("cls_token", "tokenizers.", "blocks.", "norm.")


def is_official(state_dict: dict[str, Tensor]) -> bool:
    """True for the official names (with or without DDP's `module.`), False for ours."""
    return any(key.removeprefix("module.") == "cls_token" for key in state_dict)


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours. Other keys are kept as they are, so that loading can name them.

    Weights saved with MONAI 1.4 or later carry a norm and a cross-attention that no forward pass uses; they are left
    out.
    """
    ours: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if ".norm_cross_attn." in key or ".cross_attn." in key:
            continue
        ours["backbone." + key if key.startswith(_ENCODER) else key] = value
    return ours


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours to the official names; the inverse of `from_official`."""
    return {key.removeprefix("backbone."): value for key, value in state_dict.items()}

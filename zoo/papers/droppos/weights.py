"""Official DropPos state dict <-> ours. Encoder keys are timm's in both; only the decoders are named otherwise."""

from __future__ import annotations

from torch import Tensor

_PREFIXES = {  # ours: official
    "decoder.embed.": "decoder_embed.",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.pred.": "decoder_pred.",
    "pixel_decoder.embed.": "aux_decoder_embed.",
    "pixel_decoder.blocks.": "aux_decoder_blocks.",
    "pixel_decoder.norm.": "aux_decoder_norm.",
    "pixel_decoder.pred.": "aux_decoder_pred.",
    "pixel_decoder.pos_embed": "aux_decoder_pos_embed",
    "pixel_decoder.mask_token": "mask_token",
    "mask_pos_token": "mask_pos_token",
}
_ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.")


def is_official(state_dict: dict[str, Tensor]) -> bool:
    """True for the official names (with or without DDP's `module.`), False for ours."""
    return any(key.removeprefix("module.") == "cls_token" for key in state_dict)


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Official names to ours. A key that neither side knows is kept as it is, so that loading can name it."""
    ours: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        for mine, theirs in _PREFIXES.items():
            if key.startswith(theirs):
                key = mine + key[len(theirs) :]
                break
        else:
            if key.startswith(_ENCODER):
                key = "backbone." + key
        ours[key] = value
    return ours


def to_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ours to the official names; the inverse of `from_official`."""
    official: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        for mine, theirs in _PREFIXES.items():
            if key.startswith(mine):
                key = theirs + key[len(mine) :]
                break
        official[key.removeprefix("backbone.")] = value
    return official

"""Official state dicts <-> ours: OpenAI CLIP's, CLIP2Point's pre-training checkpoint, the few-shot checkpoint.

A *tower* is an image tower. OpenAI names its parameters `conv1`, `transformer.resblocks.0.ln_1`, ...; ours are timm's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]

_NAMES = {  # official: ours
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "proj": "head.weight",
    "conv1.weight": "patch_embed.proj.weight",
}
_PREFIXES = {"ln_pre.": "norm_pre.", "ln_post.": "norm."}
_BLOCK = {
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj.": "attn.proj.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
# Where CLIP's own archives say how they were built; no weights.
_CLIP_NOTES = ("input_resolution", "context_length", "vocab_size")

PRETRAIN = {"backbone.": "point_model.", "image_tower.": "image_model."}
DPA = {"backbone.": "pre_model.", "clip_tower.": "ori_model."}


def tower_from_official(key: str, value: Tensor) -> tuple[str, Tensor]:
    """One parameter of a tower, without prefix; a name that CLIP does not have is kept, so that loading can name it."""
    if key in _NAMES:
        ours = _NAMES[key]
        if key == "class_embedding":
            return ours, value.reshape(1, 1, -1)
        if key == "positional_embedding":
            return ours, value.unsqueeze(0)
        return ours, _transposed(value) if key == "proj" else value
    for theirs, mine in _PREFIXES.items():
        if key.startswith(theirs):
            return mine + key[len(theirs) :], value
    match = re.match(r"transformer\.resblocks\.(\d+)\.(.*)", key)
    if match:
        for theirs, mine in _BLOCK.items():
            if match[2].startswith(theirs):
                return f"blocks.{match[1]}.{mine}{match[2][len(theirs) :]}", value
    return key, value


def tower_to_official(key: str, value: Tensor) -> tuple[str, Tensor]:
    """The inverse of `tower_from_official`."""
    for theirs, mine in _NAMES.items():
        if key == mine:
            if theirs == "class_embedding":
                return theirs, value.reshape(-1)
            if theirs == "positional_embedding":
                return theirs, value.squeeze(0)
            return theirs, _transposed(value) if theirs == "proj" else value
    for theirs, mine in _PREFIXES.items():
        if key.startswith(mine):
            return theirs + key[len(mine) :], value
    match = re.match(r"blocks\.(\d+)\.(.*)", key)
    if match:
        for theirs, mine in _BLOCK.items():
            if match[2].startswith(mine):
                return f"transformer.resblocks.{match[1]}.{theirs}{match[2][len(mine) :]}", value
    return key, value


def _transposed(value: Tensor) -> Tensor:
    return value.t().contiguous() if value.ndim == 2 else value  # another shape is for loading to refuse


def _convert(state: State, prefixes: Mapping[str, str], to_ours: bool) -> dict[str, Tensor]:
    convert = tower_from_official if to_ours else tower_to_official
    pairs = {theirs: mine for mine, theirs in prefixes.items()} if to_ours else prefixes
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        for old, new in pairs.items():
            if key.startswith(old):
                name, value = convert(key[len(old) :], value)
                key = new + name
                break
        out[key] = value
    return out


def is_official_pretrain(state: State) -> bool:
    """True for `point_model.*` names, with or without DataParallel's `module.`."""
    return any(key.removeprefix("module.").startswith("point_model.") for key in state)


def pretrain_from_official(state: State) -> dict[str, Tensor]:
    """The checkpoint of pre-training (`best_eval.pth`) to our names: both towers and the loss weight."""
    ours = _convert(state, PRETRAIN, to_ours=True)
    if "weights" in ours:
        ours["loss_weight"] = ours.pop("weights")
    return ours


def pretrain_to_official(state: State) -> dict[str, Tensor]:
    """Ours to the official names; the inverse of `pretrain_from_official`."""
    official = _convert(state, PRETRAIN, to_ours=False)
    if "loss_weight" in official:
        official["weights"] = official.pop("loss_weight")
    return official


def is_official_dpa(state: State) -> bool:
    """True for the few-shot checkpoint's `pre_model.*` names."""
    return any(key.removeprefix("module.").startswith("pre_model.") for key in state)


def dpa_from_official(state: State) -> dict[str, Tensor]:
    """The few-shot checkpoint (`best_test.pth`) to our names; the adapters are named alike."""
    return _convert(state, DPA, to_ours=True)


def dpa_to_official(state: State) -> dict[str, Tensor]:
    """Ours to the official names; `text_features`, which an official checkpoint has not, stays as it is."""
    return _convert(state, DPA, to_ours=False)


def is_official_clip(state: State) -> bool:
    """True for OpenAI's names of a whole CLIP, `visual.*` beside the text tower's."""
    return any(key.startswith("visual.") for key in state)


def clip_from_official(state: State) -> dict[str, Tensor]:
    """A whole CLIP under OpenAI's names (open_clip writes the same) to ours: `backbone.*`, `text.*`, `logit_scale`."""
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("visual."):
            name, value = tower_from_official(key.removeprefix("visual."), value)
            ours["backbone." + name] = value.float()
        elif key == "logit_scale":
            ours[key] = value.float()
        elif key not in _CLIP_NOTES:
            ours["text." + key] = value.float() if value.is_floating_point() else value
    ours.pop("text.attn_mask", None)  # a constant that some writers store
    return ours


def clip_to_official(state: State) -> dict[str, Tensor]:
    """Ours to OpenAI's names; the inverse of `clip_from_official`."""
    official: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("backbone."):
            name, value = tower_to_official(key.removeprefix("backbone."), value)
            official["visual." + name] = value
        else:
            official[key.removeprefix("text.")] = value
    return official

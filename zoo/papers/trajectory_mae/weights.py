"""Official state dicts <-> ours: the same names, but for encoder (`backbone.`) and masked decoders."""

from __future__ import annotations

from torch import Tensor

from zoo.errors import ZooError

StateDict = dict[str, Tensor]
ENCODER = ("point_level_sub_graph.", "global_graph.", "laneGCN_A2L.")
# What the official predictor's state dict holds and its forward pass never touches.
UNUSED = (
    "point_level_sub_graph.layers_3.",
    "point_level_sub_graph.layers_4.",
    "point_level_cross_attention.",
    "laneGCN_L2L.",
    "laneGCN_L2A.",
    "decoder.decoder.",
    "decoder.goals_2D_decoder.",
)
_DECODERS = {"map_decoder.": "map_decoder_", "traj_decoder.": "traj_decoder_"}


def is_official(state_dict: StateDict) -> bool:
    """True for the official names (with or without DDP's `module.`), False for ours."""
    return any(key.removeprefix("module.").startswith(("point_level_sub_graph.", "laneGCN_A2L.")) for key in state_dict)


def from_official(state_dict: StateDict) -> StateDict:
    """Official names to ours. A key that neither side knows is kept as it is, so that loading can name it."""
    ours: StateDict = {}
    for key, value in state_dict.items():
        key = key.removeprefix("module.")
        if key.startswith(UNUSED):
            key = "unused." + key
        elif key.startswith(ENCODER):
            key = "backbone." + key
        else:
            for mine, theirs in _DECODERS.items():
                if key.startswith(theirs):
                    key = mine + key[len(theirs) :]
        ours[key] = value
    return ours


def to_official(state_dict: StateDict) -> StateDict:
    """Ours to the official names; the inverse of `from_official`.

    Raises `ZooError` for a model with normalised features, which the released code would feed with raw ones.
    """
    if any(key.endswith("agent_scale") for key in state_dict):
        raise ZooError("A model with normalise=True has no official form: the released code's features are raw.")
    official: StateDict = {}
    for key, value in state_dict.items():
        for mine, theirs in _DECODERS.items():
            if key.startswith(mine):
                key = theirs + key[len(mine) :]
        official[key.removeprefix("backbone.").removeprefix("unused.")] = value
    return official

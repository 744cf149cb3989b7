"""State dicts of the official training script <-> ours."""

from __future__ import annotations

from zoo.module import StateDict

_LIGHTNING, _OURS = "model.", "backbone."


def is_official(state: StateDict) -> bool:
    """Lightning's names of the official script (`model.conv1.weight`), or torchvision's bare ones."""
    return any(key.startswith(("model.conv1.", "conv1.", "module.conv1.", "module.model.conv1.")) for key in state)


def from_official(state: StateDict) -> StateDict:
    """Official or torchvision names to ours. Counters that the official code's metrics left behind are dropped."""
    renamed = {}
    for key, value in state.items():
        bare = key.removeprefix("module.")
        if bare.startswith(_LIGHTNING):
            bare = bare.removeprefix(_LIGHTNING)
        elif bare.startswith(("train_", "val_", "test_")):
            continue
        renamed[_OURS + bare] = value
    return renamed


def to_official(state: StateDict) -> StateDict:
    """Ours to the names of the official script."""
    return {_LIGHTNING + key.removeprefix(_OURS): value for key, value in state.items() if key.startswith(_OURS)}


def from_official_simsiam(state: StateDict) -> StateDict:
    """As `from_official`, with the projector that the official script puts in place of `fc`."""
    renamed = {}
    for key, value in from_official(state).items():
        bare = key.removeprefix(_OURS)
        own = bare.startswith("predictor.")
        renamed[bare if own else key.replace(f"{_OURS}fc.", "projector.", 1)] = value
    return renamed


def to_official_simsiam(state: StateDict) -> StateDict:
    """Ours to the names of the official script, the projector at `model.fc`."""
    renamed = {key.replace("projector.", f"{_OURS}fc.", 1): value for key, value in state.items()}
    heads = {key: value for key, value in state.items() if key.startswith("predictor.")}
    return to_official(renamed) | heads

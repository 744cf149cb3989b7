"""Official state dicts <-> ours: the face code's SwAV, MoCo and SimSiam, and SwAV's own release."""

from __future__ import annotations

from zoo.module import StateDict

_SWAV = {"backbone.": "base_net.", "projector.": "projection_net.net.", "prototypes.": "prototypes."}
_SWAV_RELEASE = {"backbone.": "", "projector.": "projection_head.", "prototypes.": "prototypes."}
_SIMSIAM = {"backbone.": "base_net.", "projector.": "projector.net.", "predictor.": "predictor.net."}
_MOCO = {
    "head.": "encoder_q.fc.", "backbone.": "encoder_q.", "key_head.": "encoder_k.fc.", "key_backbone.": "encoder_k.",
    "queue_at": "queue_ptr", "queue": "queue",
}  # fmt: skip
_RESNET = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.", "fc.")


def swav_from_official(state: StateDict) -> StateDict:
    """The face code's (`base_net.conv1...`) or SwAV's own (`conv1...`, `projection_head...`) names to ours; ours stay.

    A key that no side knows is kept as it is, so that loading can name it.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if any(key.startswith("base_net.") for key in state):
        return _rename(state, {theirs: mine for mine, theirs in _SWAV.items()})
    if any(key.startswith(("conv1.", "projection_head.")) for key in state):
        names = {theirs: mine for mine, theirs in _SWAV_RELEASE.items() if theirs}
        return _rename(state, names | {part: f"backbone.{part}" for part in _RESNET})
    return state


def swav_to_official(state: StateDict) -> StateDict:
    """Ours to the face code's names. The queue, which the official code keeps in a file of its own, stays as it is."""
    return _rename(state, _SWAV)


def simsiam_from_official(state: StateDict) -> StateDict:
    """The face code's SimSiam names to ours."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("base_net.") for key in state):
        return state
    return _rename(state, {theirs: mine for mine, theirs in _SIMSIAM.items()})


def simsiam_to_official(state: StateDict) -> StateDict:
    """Ours to the face code's SimSiam names."""
    return _rename(state, _SIMSIAM)


def moco_from_official(state: StateDict) -> StateDict:
    """The face code's MoCo names (`encoder_q.`, `encoder_k.`) to ours; the pointer becomes a scalar."""
    state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("encoder_q.") for key in state):
        return state
    ours = _rename(state, {theirs: mine for mine, theirs in _MOCO.items()})
    if "queue_at" in ours and ours["queue_at"].shape == (1,):
        ours["queue_at"] = ours["queue_at"][0]
    return ours


def moco_to_official(state: StateDict) -> StateDict:
    """Ours to the face code's MoCo names."""
    official = _rename(state, _MOCO)
    if "queue_ptr" in official:
        official["queue_ptr"] = official["queue_ptr"].reshape(1)
    return official


def _rename(state: StateDict, names: dict[str, str]) -> StateDict:
    """The first of `names` that a key starts with is replaced; whole names come before what they begin."""
    renamed = {}
    for key, value in state.items():
        for old in sorted(names, key=len, reverse=True):
            if key.startswith(old) and (old.endswith(".") or key == old):
                key = names[old] + key[len(old) :]
                break
        renamed[key] = value
    return renamed

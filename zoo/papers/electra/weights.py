"""Official TensorFlow variables, transformers' keys, and ours.

| part | TensorFlow | transformers | ours |
|---|---|---|---|
| discriminator | `electra/...` | `electra.` of `ElectraForPreTraining` | `backbone.` |
| generator | `generator/...` | `electra.` of `ElectraForMaskedLM`, its own file | `generator.` |
| Electric's towers | `generator_ltr/`, `generator_rtl/` | none | `generator.ltr.`, `generator.rtl.` |
| heads | `discriminator_predictions/`, `generator_predictions/`, `cloze_predictions/` | with dots | with dots |
"""

from __future__ import annotations

import re

from torch import Tensor

from zoo.nn.text_weights import from_tensorflow_name, is_optimiser_slot, to_tensorflow_name

StateDict = dict[str, Tensor]
_BIAS = re.compile(r"^(generator_predictions|cloze_predictions|token_predictions\.words)\.output_bias$")
_OUR_BIAS = re.compile(r"^(generator_predictions|cloze_predictions|token_predictions\.words)\.bias$")
_TOWER = re.compile(r"^generator_(ltr|rtl)\.")
_OUR_TOWER = re.compile(r"^generator\.(ltr|rtl)\.")


def is_tensorflow(state_dict: StateDict) -> bool:
    return any(key.startswith(("electra/", "generator/", "generator_predictions/")) for key in state_dict)


def is_transformers(state_dict: StateDict) -> bool:
    return any(key.startswith("electra.") for key in state_dict)


def from_tensorflow(state_dict: StateDict) -> StateDict:
    """Official names to ours; optimiser slots and the step counter are left out. Unknown keys stay, to be named."""
    ours: StateDict = {}
    for key, value in state_dict.items():
        if is_optimiser_slot(key):
            continue
        name, transpose = from_tensorflow_name(key)
        name = name.replace("discriminator_predictions.dense_1.", "discriminator_predictions.dense_prediction.")
        name = _BIAS.sub(r"\1.bias", name)
        name = _TOWER.sub(r"generator.\1.", name)
        if name.startswith("electra."):
            name = "backbone." + name.removeprefix("electra.")
        ours[name] = value.t() if transpose and value.ndim == 2 else value
    return ours


def to_tensorflow(state_dict: StateDict) -> StateDict:
    """Ours to the official names; the inverse of `from_tensorflow`."""
    official: StateDict = {}
    for key, value in state_dict.items():
        name = key.replace("discriminator_predictions.dense_prediction.", "discriminator_predictions.dense_1.")
        name = _OUR_BIAS.sub(r"\1.output_bias", name)
        name = _OUR_TOWER.sub(r"generator_\1.", name)
        if name.startswith("backbone."):
            name = "electra." + name.removeprefix("backbone.")
        name, transpose = to_tensorflow_name(name)
        official[name] = value.t().contiguous() if transpose else value
    return official


def from_transformers(state_dict: StateDict) -> StateDict:
    """Keys of `ElectraForPreTraining` or `ElectraForMaskedLM` to ours (of a model with the one network only)."""
    ours: StateDict = {}
    for key, value in state_dict.items():
        if key.endswith("position_ids") or key == "generator_lm_head.weight":  # a buffer; the tied word table
            continue
        if key == "generator_lm_head.bias":
            key = "generator_predictions.bias"
        elif key.startswith("electra."):
            key = "backbone." + key.removeprefix("electra.")
        ours[key] = value
    return ours


def to_transformers(state_dict: StateDict, network: str) -> StateDict:
    """Ours to transformers' keys.

    Args:
        network: "discriminator" (for `ElectraForPreTraining`) or "generator" (for `ElectraForMaskedLM`, its embedding
            block taken from the shared one unless the generator has its own).
    """
    theirs: StateDict = {}
    if network == "discriminator":
        for key, value in state_dict.items():
            if key.startswith("backbone."):
                theirs["electra." + key.removeprefix("backbone.")] = value
            elif key.startswith("discriminator_predictions."):
                theirs[key] = value
        return theirs
    own = any(key.startswith("generator.embeddings.") for key in state_dict)
    separate = any(key.startswith("generator.") for key in state_dict)
    for key, value in state_dict.items():
        if key.startswith("generator."):
            theirs["electra." + key.removeprefix("generator.")] = value
        elif key == "generator_predictions.bias":
            theirs["generator_lm_head.bias"] = value
        elif key.startswith("generator_predictions."):
            theirs[key] = value
        elif (key.startswith("backbone.embeddings.") and not own) or (key.startswith("backbone.") and not separate):
            theirs["electra." + key.removeprefix("backbone.")] = value
    theirs["generator_lm_head.weight"] = theirs["electra.embeddings.word_embeddings.weight"]
    return theirs

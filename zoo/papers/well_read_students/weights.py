"""Official TensorFlow variables, transformers' keys of `BertForPreTraining`, and ours."""

from __future__ import annotations

from torch import Tensor

from zoo.nn.text_weights import from_tensorflow_name, is_optimiser_slot, to_tensorflow_name

StateDict = dict[str, Tensor]
_HEADS = {  # TensorFlow: (ours, transposed); transformers' names follow from them
    "cls/predictions/transform/dense/kernel": ("mlm_head.dense.weight", True),
    "cls/predictions/transform/dense/bias": ("mlm_head.dense.bias", False),
    "cls/predictions/transform/LayerNorm/gamma": ("mlm_head.LayerNorm.weight", False),
    "cls/predictions/transform/LayerNorm/beta": ("mlm_head.LayerNorm.bias", False),
    "cls/predictions/output_bias": ("mlm_head.bias", False),
    "cls/seq_relationship/output_weights": ("nsp_head.weight", False),
    "cls/seq_relationship/output_bias": ("nsp_head.bias", False),
}
_OURS = {ours: (theirs, transpose) for theirs, (ours, transpose) in _HEADS.items()}


def is_tensorflow(state_dict: StateDict) -> bool:
    return any(key.startswith(("bert/", "cls/")) for key in state_dict)


def is_transformers(state_dict: StateDict) -> bool:
    return any(key.startswith(("bert.", "cls.")) for key in state_dict)


def from_tensorflow(state_dict: StateDict) -> StateDict:
    """Official names to ours; optimiser slots are left out, unknown keys stay, to be named."""
    ours: StateDict = {}
    for key, value in state_dict.items():
        if is_optimiser_slot(key):
            continue
        name, transpose = _HEADS.get(key) or from_tensorflow_name(key)
        name = "backbone." + name.removeprefix("bert.") if name.startswith("bert.") else name
        ours[name] = value.t() if transpose and value.ndim == 2 else value
    return ours


def to_tensorflow(state_dict: StateDict) -> StateDict:
    """Ours to the official names; the inverse of `from_tensorflow`."""
    official: StateDict = {}
    for key, value in state_dict.items():
        if key in _OURS:
            name, transpose = _OURS[key]
        else:
            name, transpose = to_tensorflow_name(key.replace("backbone.", "bert.", 1))
        official[name] = value.t().contiguous() if transpose else value
    return official


def from_transformers(state_dict: StateDict) -> StateDict:
    """Keys of `BertForPreTraining` (or a bare `bert.` file, also with old gamma and beta) to ours."""
    renames = {
        "cls.predictions.transform.": "mlm_head.",
        "cls.predictions.bias": "mlm_head.bias",
        "cls.seq_relationship.": "nsp_head.",
        "bert.": "backbone.",
    }
    ours: StateDict = {}
    for key, value in state_dict.items():
        if key.endswith("position_ids") or key.startswith("cls.predictions.decoder."):  # a buffer; the tied word table
            continue
        key = key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        for theirs, mine in renames.items():
            if key.startswith(theirs):
                key = mine + key[len(theirs) :]
                break
        ours[key] = value
    return ours


def to_transformers(state_dict: StateDict) -> StateDict:
    """Ours to the keys of `BertForPreTraining`, the tied decoder included."""
    theirs: StateDict = {}
    for key, value in state_dict.items():
        if key == "tokenizer_data":
            continue
        if key == "mlm_head.bias":
            theirs["cls.predictions.bias"] = theirs["cls.predictions.decoder.bias"] = value
        elif key.startswith("mlm_head."):
            theirs["cls.predictions.transform." + key.removeprefix("mlm_head.")] = value
        elif key.startswith("nsp_head."):
            theirs["cls.seq_relationship." + key.removeprefix("nsp_head.")] = value
        else:
            theirs[key.replace("backbone.", "bert.", 1)] = value
    theirs["cls.predictions.decoder.weight"] = theirs["bert.embeddings.word_embeddings.weight"]
    return theirs

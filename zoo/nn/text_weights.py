"""TensorFlow BERT's variable names to torch's and back: dots, kernels transposed, gamma and beta renamed."""

from __future__ import annotations

import re

TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")
_LAYER = re.compile(r"layer_(\d+)")


def is_optimiser_slot(key: str) -> bool:
    """True for what training leaves in a checkpoint besides the weights."""
    return key.endswith(("/adam_m", "/adam_v")) or key == "global_step"


def from_tensorflow_name(key: str) -> tuple[str, bool]:
    """`a/layer_0/b/kernel` to `a.layer.0.b.weight`, and whether its value is to be transposed."""
    if "/" not in key:  # not one of TensorFlow's
        return key, False
    dotted = _LAYER.sub(r"layer.\1", key).replace("/", ".")
    head, _, leaf = dotted.rpartition(".")
    if leaf in TABLES:
        return f"{dotted}.weight", False
    return f"{head}.{ {'kernel': 'weight', 'gamma': 'weight', 'beta': 'bias'}.get(leaf, leaf) }", leaf == "kernel"


def to_tensorflow_name(name: str) -> tuple[str, bool]:
    """The inverse: `a.layer.0.b.weight` to `a/layer_0/b/kernel`, and whether its value is to be transposed."""
    head, _, leaf = name.rpartition(".")
    if not head:
        return name, False
    transpose = False
    if leaf == "weight" and head.endswith(TABLES):
        name = head
    elif leaf in ("weight", "bias") and head.endswith("LayerNorm"):
        name = f"{head}.{'gamma' if leaf == 'weight' else 'beta'}"
    elif leaf == "weight":
        name, transpose = f"{head}.kernel", True
    return re.sub(r"\.layer\.(\d+)\.", r".layer_\1.", name).replace(".", "/"), transpose

"""ELECTRA: pre-training text encoders as discriminators of replaced tokens."""

from zoo.nn.text import require

require("transformers")
from zoo.papers.electra.module import Electra  # noqa: E402

__all__ = ["Electra"]

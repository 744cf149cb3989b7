"""ELECTRA: pre-training text encoders as discriminators of replaced tokens."""

__domain__ = "text"

from zoo.nn.text import text_packages

with text_packages():
    from zoo.papers.electra.module import Electra

__all__ = ["Electra"]

"""DropPos: pre-training vision transformers by reconstructing dropped positions."""

__domain__ = "images"

from zoo.papers.droppos.module import DropPos

__all__ = ["DropPos"]

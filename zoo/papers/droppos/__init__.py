"""DropPos: pre-training vision transformers by reconstructing dropped positions."""

from zoo.papers.droppos.module import DropPos

__all__ = ["DropPos"]

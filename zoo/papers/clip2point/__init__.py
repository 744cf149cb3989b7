"""CLIP2Point: transferring CLIP to point clouds by image-depth pre-training."""

__domain__ = "point clouds"

from zoo.papers.clip2point.clip import CLIP
from zoo.papers.clip2point.fewshot import DualPathAdapter
from zoo.papers.clip2point.module import CLIP2Point
from zoo.papers.clip2point.rendering import DepthRenderer, clip_images
from zoo.papers.clip2point.zeroshot import ZeroShot

__all__ = ["CLIP", "CLIP2Point", "DepthRenderer", "DualPathAdapter", "ZeroShot", "clip_images"]

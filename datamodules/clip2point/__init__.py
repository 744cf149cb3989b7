"""Data for CLIP2Point: pairs of clouds and pictures for pre-training, labelled clouds for classification."""

from datamodules.clip2point.classification import PointCloudDataModule
from datamodules.clip2point.pairs import PairDataModule

__all__ = ["PairDataModule", "PointCloudDataModule"]

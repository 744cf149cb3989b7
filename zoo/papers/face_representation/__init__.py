"""Facial representation learning: SwAV on faces, and its five-task benchmark."""

__domain__ = "faces"

from zoo.papers.face_representation.downstream import FaceTask
from zoo.papers.face_representation.moco import MoCo
from zoo.papers.face_representation.module import SwAV
from zoo.papers.face_representation.simsiam import SimSiam

__all__ = ["FaceTask", "MoCo", "SimSiam", "SwAV"]

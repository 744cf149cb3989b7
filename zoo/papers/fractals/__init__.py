"""Fractal pre-training: images without images."""

from zoo.papers.fractals.module import FractalPretraining
from zoo.papers.fractals.simsiam import FractalSimSiam

__all__ = ["FractalPretraining", "FractalSimSiam"]

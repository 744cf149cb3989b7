"""Fractal pre-training: images without images."""

from zoo.papers.fractals.module import FractalPretraining

__all__ = ["FractalPretraining"]

"""Fractal pre-training: images without images."""

__domain__ = "images"

from zoo.papers.fractals.module import FractalPretraining

__all__ = ["FractalPretraining"]

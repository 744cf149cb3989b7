"""Images without images: iterated function systems, their rendering, and pictures made of them as training data."""

from datamodules.fractals.datamodule import FractalsDataModule

__all__ = ["FractalsDataModule"]

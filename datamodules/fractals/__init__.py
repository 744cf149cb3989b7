"""Images without images: iterated function systems, their rendering, and pictures made of them as training data."""

from datamodules.fractals.datamodule import FractalsDataModule
from datamodules.fractals.transfer import FractalTransferDataModule

__all__ = ["FractalTransferDataModule", "FractalsDataModule"]

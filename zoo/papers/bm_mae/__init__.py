"""BM-MAE: a multimodal masked autoencoder for brain-tumour MRI with missing sequences."""

__domain__ = "3D MRI"

from zoo.papers.bm_mae.module import BMMAE

__all__ = ["BMMAE"]

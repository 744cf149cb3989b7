"""Multi-crops of unlabelled faces for pre-training: SwAV's augmentation, decoded once for all crops of an image."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.base import ZooDataModule, normalize
from datamodules.faces.multicrop import MultiCrop, apply_draws
from datamodules.faces.rendered_tasks import rendered_tasks
from datamodules.faces.shots import few_shot
from datamodules.faces.sources import RENDERED, open_faces
from datamodules.images import ImageDataset
from zoo.errors import ZooError

MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)
"""As SwAV's code has them: 0.228, not ImageNet's 0.229."""


class FaceRepresentationDataModule(ZooDataModule):
    """Batches of crops: a tuple with one float tensor a resolution, (B, n, 3, s, s).

    Args:
        root: a `.h5` container or a folder of them, `.tar` shards, a folder of images (`datamodules.faces.sources`
            has the details), or "rendered": schematic faces that are drawn, plainly synthetic.
        dataset: which official container in a folder: vggface2, 300wlp, widerface, imdbface, affectnet, flickr; or all.
        batch_size: images of one step on one device.
        crop_sizes, num_crops, crop_scales: side, number and share of the image's area, one entry a resolution.
        flip, jitter, jitter_p, grey_p, blur_p, blur_sigma: see `MultiCrop`.
        augment_on: where colour and blur are done: "workers", or "device" for a GPU with time to spare. The draws are
            the same.
        std_red: standard deviation of the red channel for normalisation; 0.228 is the official code's (a slip for 0.229
            that the published weights were trained with).
        on_bad_image: "error" names an unreadable image and stops; "skip" passes over it and counts.
        exif: turn images upright by their EXIF note; the official code does not.
        val_images: held-out images for `val/loss`; 0 for none.
        rendered_size, rendered_images, rendered_identities, rendered_seed: the rendered faces.
        task_train, task_test, task_identities: rendered pictures and people of the five downstream tasks, which are
            others than those of pre-training (`face_tasks`).
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str = RENDERED,
        dataset: str = "all",
        batch_size: int = 64,
        crop_sizes: list[int] = [224, 96],  # noqa: B006 - jsonargparse shows it
        num_crops: list[int] = [2, 6],  # noqa: B006
        crop_scales: list[list[float]] = [[0.14, 1.0], [0.05, 0.14]],  # noqa: B006
        flip: float = 0.5,
        jitter: float = 1.0,
        jitter_p: float = 0.8,
        grey_p: float = 0.2,
        blur_p: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        augment_on: Literal["workers", "device"] = "workers",
        std_red: float = 0.228,
        on_bad_image: Literal["error", "skip"] = "error",
        exif: bool = True,
        val_images: int = 0,
        rendered_size: int = 64,
        rendered_images: int = 4096,
        rendered_identities: int = 256,
        rendered_seed: int = 0,
        task_train: int = 1000,
        task_test: int = 500,
        task_identities: int = 50,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        if std_red <= 0:
            raise ZooError(f"std_red lies above 0, not at {std_red}.")
        super().__init__(batch_size, num_workers, pin_memory, MEAN, (std_red, *STD[1:]))
        self.save_hyperparameters()
        for name, share in (("flip", flip), ("jitter_p", jitter_p), ("grey_p", grey_p), ("blur_p", blur_p)):
            if not 0 <= share <= 1:
                raise ZooError(f"{name} is a probability from 0 to 1, not {share}.")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ZooError(f"blur_sigma is (least, most) above 0, not {tuple(blur_sigma)}.")
        self.augment = MultiCrop(
            crop_sizes, num_crops, crop_scales, flip, jitter, jitter_p, grey_p, blur_p, tuple(blur_sigma),
            apply=augment_on == "workers",
        )  # fmt: skip
        rendered = dict(size=rendered_size, images=rendered_images, identities=rendered_identities, seed=rendered_seed)
        self.source: dict[str, Any] = dict(
            root=root, dataset=dataset, val_images=val_images, on_bad_image=on_bad_image, exif=exif, rendered=rendered
        )
        self.train_data: ImageDataset | None = None
        self.val_data: ImageDataset | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is None:
            self.train_data = open_faces(split="train", transform=self._sample, **self.source)
            self.val_data = open_faces(split="val", transform=self._sample, **self.source)

    def _sample(self, image: Image.Image) -> Any:
        crops, draws = self.augment(image)
        return crops if self.augment.apply else (crops, draws)

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_data, train=True)

    def val_dataloader(self) -> DataLoader | list[Any]:
        return self.loader(self.val_data, train=False) if self.val_data is not None else []

    def raw_sample(self) -> Image.Image:
        """The first image, not augmented."""
        self.setup()
        data = self.val_data or self.train_data
        assert data is not None
        return data.image(0)

    def face_tasks(self) -> dict[str, dict[str, Any]]:
        """The five downstream tasks on rendered faces (`datamodules.faces.rendered_tasks`)."""
        h = self.hparams
        return rendered_tasks(h.rendered_size, h.task_train, h.task_test, h.task_identities, h.rendered_seed)

    @staticmethod
    def face_shots(task: str, data: dict[str, Any], shots: list[int], seed: int) -> dict[str, np.ndarray]:
        """Nested index sets of a task's training samples: few people for recognition, else few pictures of many."""
        subjects = data["subjects"]
        return few_shot(len(subjects), shots, seed, subjects, whole_subjects=task == "recognition")

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to float, as the crops are."""
        assert self.mean is not None
        assert self.std is not None
        return normalize(images, self.mean, self.std)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Tensor, ...]:
        (crops, *_) = batch  # the labels are all 0
        if not self.augment.apply:
            crops, draws = crops
            crops = [_on_device(images, drawn) for images, drawn in zip(crops, draws, strict=True)]
        out = []
        for images in crops:
            pixels = self.normalize(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            out.append(pixels if self.trainer is None else self.trainer.precision_plugin.convert_input(pixels))
        return tuple(out)


def _on_device(images: Tensor, draws: Tensor) -> Tensor:
    """Colour and blur of (B, n, 3, s, s) by (B, n, 9)."""
    with torch.autocast(images.device.type, enabled=False):
        return apply_draws(images.flatten(0, 1), draws.flatten(0, 1)).unflatten(0, images.shape[:2])

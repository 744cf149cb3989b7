"""k-nearest-neighbour classification with frozen features: nothing is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.module import ZooModule
from zoo.tasks.probes import extract_features, knn_accuracy
from zoo.tasks.start import check_image_size, image_size_of, start_model


class KNN(ZooModule):
    """Scores a model's features by cosine k-NN; a recipe with `subcommand: test` runs it.

    The data module gives the labelled images with `labelled_dataloaders() -> (train, held out)`.

    Args:
        backbone: a zoo name, a manifest, a checkpoint or a run folder.
        k: neighbours, closer ones weigh more; several values are each scored from the same features.
    """

    def __init__(self, backbone: str, k: list[int] = [10, 20]) -> None:  # noqa: B006 - jsonargparse shows it
        super().__init__()
        self.save_hyperparameters()
        self.frozen = start_model(backbone).requires_grad_(False).eval()

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        return self.frozen.backbone

    def preprocess(self, raw: Any) -> Tensor:
        """As the frozen model's."""
        return self.frozen.preprocess(raw)

    def forward(self, images: Tensor) -> Tensor:
        """Frozen features (B, D)."""
        return self.frozen(images)

    def setup(self, stage: str) -> None:
        check_image_size(self, image_size_of(self.frozen))

    def on_test_start(self) -> None:
        if self.trainer.world_size > 1:
            raise ZooError("k-NN wants all features in one process: run it with --trainer.devices 1.")

    def test_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        images, labels = batch[:2]
        self._features.append(self(images).float().cpu())
        self._labels.append(labels.cpu())

    def on_test_epoch_start(self) -> None:
        self._features: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_test_epoch_end(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]

        def features(images: Tensor) -> Tensor:
            return self(data.on_after_batch_transfer((images, None), 0)[0])

        train, _ = data.labelled_dataloaders()
        known = extract_features(features, train, self.device)
        held_out = (torch.cat(self._features).numpy(), torch.cat(self._labels).numpy())
        for k in self.hparams.k:
            self.log(f"test/knn{k}_acc", knn_accuracy(known, held_out, k))

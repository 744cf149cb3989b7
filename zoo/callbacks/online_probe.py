"""How good the features are while pre-training goes on: k-NN and a linear probe."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.modes import evaluating
from zoo.errors import ZooError
from zoo.seeding import keep_draws
from zoo.tasks.probes import every_sample, extract_features, knn_accuracy, linear_probe_accuracy


class OnlineProbe(Callback):
    """Logs `probe/knn_acc` and `probe/linear_acc` of the frozen features when epochs end.

    The data module gives the images with `labelled_dataloaders() -> (train, held out)`. The first device probes, the
    others wait, ten minutes at most (`zoo.strategies.TIMEOUT`). The weights are those of training, not an EMA's.

    Args:
        every_n_epochs: probe after every so many epochs.
        knn_k: neighbours; 0 leaves k-NN out.
        linear: whether to fit the linear probe (logistic regression) too.
    """

    def __init__(self, every_n_epochs: int = 10, knn_k: int = 20, linear: bool = False) -> None:
        if every_n_epochs < 1:
            raise ZooError(f"OnlineProbe.every_n_epochs is at least 1, not {every_n_epochs}.")
        self.every_n_epochs, self.knn_k, self.linear = every_n_epochs, knn_k, linear

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(trainer.datamodule, "labelled_dataloaders"):  # type: ignore[attr-defined]
            raise ZooError("OnlineProbe needs a data module with labels: take it out of the recipe for this data.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        scores = self._probe(trainer, pl_module) if trainer.is_global_zero else {}
        scores = trainer.strategy.broadcast(scores)
        self.log_dict(scores)

    def _probe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        data = trainer.datamodule  # type: ignore[attr-defined]

        def features(images: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return pl_module(data.on_after_batch_transfer((images, None), 0)[0])

        with evaluating(pl_module), keep_draws(), every_sample(data):
            train, held_out = (
                extract_features(features, loader, pl_module.device) for loader in data.labelled_dataloaders()
            )
        scores = {}
        if self.knn_k:
            scores["probe/knn_acc"] = knn_accuracy(train, held_out, self.knn_k)
        if self.linear:
            scores["probe/linear_acc"] = linear_probe_accuracy(train, held_out)
        return scores

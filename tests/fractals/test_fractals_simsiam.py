"""SimSiam on fractals."""

from __future__ import annotations

import pytest
import torch
from lightning import Trainer

from datamodules.fractals import FractalsDataModule
from zoo.errors import ZooError
from zoo.nn.contrastive import simsiam_loss
from zoo.papers.fractals import FractalSimSiam
from zoo.tasks import ResNetClassification

TINY = dict(network="resnet10t", image_size=32, projection_dim=24, predictor_dim=8, lr=0.05)
DATA = dict(task="views", image_size=32, batch_size=8, num_classes=64, per_class=1, points=400, window=8, streams=1,
            val_images=8, num_workers=0)  # fmt: skip


class Watched(FractalSimSiam):
    """Keeps the rates that the last step was taken with."""

    def on_before_optimizer_step(self, optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.rates = [group["lr"] for group in optimizer.param_groups]


def test_loss_is_the_cosine_and_spares_the_projections():
    a, b = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    assert simsiam_loss(a, b, 2 * b, 3 * a).item() == pytest.approx(-1, abs=1e-6)
    z = torch.randn(2, 5, 7, requires_grad=True)
    simsiam_loss(a, b, z[0], z[1]).backward()
    assert a.grad.abs().sum() > 0
    assert z.grad is None or z.grad.abs().sum() == 0


@pytest.mark.parametrize("renderer", ["cpu", "device"])
def test_trains_with_a_fixed_rate_of_the_predictor(renderer, tmp_path):
    torch.manual_seed(0)
    model, data = Watched(**TINY), FractalsDataModule(renderer=renderer, **DATA)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    start = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.fit(model, data)
    predictor, decayed, plain = model.rates
    assert predictor == pytest.approx(0.05)
    assert decayed == plain
    assert decayed < 0.01  # nearly at the end of the cosine
    assert -1 <= trainer.callback_metrics["val/loss"] <= 1
    assert trainer.callback_metrics["val/spread"] > 0.01
    for name in ("backbone.conv1.0.weight", "projector.0.weight", "predictor.3.weight"):
        assert not torch.equal(model.state_dict()[name], start[name])


def test_official_names_there_and_back():
    model = FractalSimSiam(**TINY)
    official = model.official_state_dict()
    assert {"model.fc.0.weight", "model.fc.7.running_mean", "predictor.3.bias"} <= set(official)
    assert all(key.startswith(("model.", "predictor.")) for key in official)
    other = FractalSimSiam(**TINY)
    other.load_weights(official)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_fine_tuning_starts_from_it(tmp_path):
    model = FractalSimSiam(**TINY)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", barebones=True)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "views.ckpt")
    task = ResNetClassification(backbone=str(tmp_path / "views.ckpt"), num_classes=3)
    torch.testing.assert_close(task.backbone.layer1[0].conv1.weight, model.backbone.layer1[0].conv1.weight)


def test_labels_are_no_views():
    model = FractalSimSiam(**TINY)
    with pytest.raises(ZooError, match=r"set data\.task to views"):
        model.training_step((torch.rand(2, 3, 32, 32), torch.tensor([0, 1])), 0)

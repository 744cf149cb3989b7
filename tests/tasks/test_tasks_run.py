"""The tasks as `lightning run` starts them: what a module built by hand does not show."""

from __future__ import annotations

import csv

import pytest
import torch

import zoo
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.papers.droppos import DropPos
from zoo.tasks import ImageClassification, LinearProbe
from zoo.tasks.start import start_model

DIGITS = ["--data.root", "digits", "--data.num_workers", "0", "--data.eval_crop_pct", "1.0", "--data.image_size", "16"]


@pytest.fixture(autouse=True)
def _quiet_logging(monkeypatch):
    # Lightning's log handler holds on to the stderr that the first test captured.
    monkeypatch.setattr("logging.raiseExceptions", False)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> str:
    """The checkpoint of a DropPos model whose arguments differ from every default of the tasks."""
    model = DropPos(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, decoder_embed_dim=16,
                    decoder_depth=1, decoder_num_heads=2, mask_ratio=0.25)  # fmt: skip
    path = tmp_path_factory.mktemp("pretrained") / "last.ckpt"
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def last_row(run) -> dict[str, str]:
    merged: dict[str, str] = {}
    for row in csv.DictReader((run / "metrics.csv").open()):
        merged |= {key: value for key, value in row.items() if value}
    return merged


def test_finetuning_recipe_runs_and_its_folder_is_a_start(tmp_path, pretrained):
    tuned, scored = tmp_path / "tuned", tmp_path / "scored"
    main(["run", "droppos/finetune_classification", "--run-dir", str(tuned), "--model.backbone", pretrained, *DIGITS,
          "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--model.mixup", "0.8"])  # fmt: skip
    assert 0 <= float(last_row(tuned)["val/acc1"]) <= 1
    model = zoo.load(tuned)
    assert isinstance(model, ImageClassification)
    assert model.hparams.backbone is None
    assert (model.image_size, model.num_classes, model.backbone.embed_dim) == (16, 10, 24)
    again = ImageClassification.load_from_checkpoint(tuned / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), check_device=False)
    main(["run", "droppos/knn", "--run-dir", str(scored), "--model.backbone", str(tuned), *DIGITS])
    assert float(last_row(scored)["test/knn20_acc"]) > 0.3


def test_linear_probe_recipe_runs(tmp_path, pretrained):
    run = tmp_path / "run"
    main(["run", "droppos/linear_probe", "--run-dir", str(run), "--model.backbone", pretrained, *DIGITS,
          "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--data.batch_size", "64"])  # fmt: skip
    probe = zoo.load(run)
    assert isinstance(probe, LinearProbe)
    start = zoo.load(pretrained)
    torch.testing.assert_close(probe.frozen.state_dict(), start.state_dict())


def test_image_sizes_that_differ_are_caught_before_the_first_batch(tmp_path, pretrained, capsys):
    for recipe in ("finetune_classification", "linear_probe", "knn"):
        with pytest.raises(SystemExit) as stop:
            main(["run", f"droppos/{recipe}", "--run-dir", str(tmp_path / recipe), "--model.backbone", pretrained,
                  *DIGITS[:-1], "32"])  # fmt: skip
        assert stop.value.code == 2
        assert "takes images of 16 pixels, the data gives 32" in capsys.readouterr().err


def test_a_checkpoint_cannot_name_any_class_as_its_backbone(tmp_path):
    victim = tmp_path / "written"
    with pytest.raises(ZooError, match="is not a ZooModule"):
        start_model({"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(victim)]}})
    assert not victim.exists()


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"reg_tokens": 2},
        {"init_values": 0.1},
        {"qkv_bias": False},
        {"no_embed_class": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_vits_fine_tune_as_they_are(monkeypatch, options):
    from timm.models.vision_transformer import VisionTransformer

    class Pretrained:
        backbone = VisionTransformer(
            img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=0,
            norm_layer=lambda dim, **_: torch.nn.LayerNorm(dim, eps=1e-3), **options,
        ).eval()  # fmt: skip

    monkeypatch.setattr("zoo.tasks.image_classification.start_model", lambda backbone: Pretrained)
    model = ImageClassification("any", num_classes=10, drop_path=0).eval()
    images = torch.randn(2, 3, 16, 16)
    # With a fresh fc_norm the features are the encoder's last block, averaged over the patches and normalised.
    encoder = Pretrained.backbone
    tokens = encoder.forward_intermediates(images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True)[0]
    expected = torch.nn.functional.layer_norm(tokens.mean(1), (24,), eps=1e-3)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert ImageClassification(network=model.network, num_classes=10).state_dict().keys() == model.state_dict().keys()


def test_mixing_one_image_is_refused():
    model = ImageClassification(network={"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 1},
                                num_classes=3)  # fmt: skip
    with pytest.raises(ZooError, match="two images or more"):
        model.training_step((torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.long)), 0)

"""Which precision is chosen, and that what needs float32 gets it."""

from __future__ import annotations

import pytest
import torch
import yaml

from zoo.cli.run import main
from zoo.module import full_precision
from zoo.nn.contrastive import contrastive_loss
from zoo.papers.droppos import DropPos
from zoo.precision import Device, choose_precision, find_device


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        (Device("cuda", "H100", (9, 0), bf16=True), "bf16-mixed"),
        (Device("cuda", "A100", (8, 0), bf16=True), "bf16-mixed"),
        (Device("cuda", "V100", (7, 0)), "16-mixed"),
        (Device("cuda", "T4", (7, 5)), "16-mixed"),
        (Device("cuda", "P100", (6, 0)), "32-true"),
        (Device("mps", "Apple's GPU"), "32-true"),
        (Device("cpu", "a CPU"), "32-true"),
        (Device("tpu", "tpu"), "32-true"),
    ],
)
def test_choice(device, precision):
    chosen, why = choose_precision(device)
    assert chosen == precision
    assert device.name in why


def test_find_device(monkeypatch):
    assert find_device("cpu").kind == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: [(8, 0), (7, 5)][i])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: ["A100", "T4"][i])
    assert find_device() == Device("cuda", "the T4", (7, 5), bf16=False)  # the weakest of several
    assert find_device("cpu").kind == "cpu"


def test_auto_in_a_recipe_and_on_the_command_line(capsys, tmp_path):
    for arguments in (["--trainer.precision", "auto"], ["--trainer.precision=auto", "--trainer.accelerator", "cpu"]):
        with pytest.raises(SystemExit):
            main(["run", "droppos/quickstart", "--print-config", *arguments])
        assert yaml.safe_load(capsys.readouterr().out)["trainer"]["precision"] == "32-true"


def test_another_precision_than_the_recipes_auto(capsys):
    with pytest.raises(SystemExit):
        main(["run", "droppos/quickstart", "--print-config", "--trainer.precision", "bf16-mixed"])
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["precision"] == "bf16-mixed"


def tiny(**more) -> DropPos:
    torch.manual_seed(0)
    return DropPos(image_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, decoder_embed_dim=16,
                   decoder_depth=1, decoder_num_heads=2, mask_ratio=0.25, **more)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_droppos_computes_its_loss_in_float32(dtype):
    """Under autocast the loss is that of the half-precision logits, taken in float32 to the last bit."""
    from zoo.papers.droppos import losses

    model, images = tiny(attn_guide=False), torch.randn(4, 3, 16, 16)
    with torch.autocast("cpu", dtype=dtype):
        out = model.position_task(images)
    assert out.loss.dtype == out.logits.dtype == torch.float32
    weights = losses.position_weights(out.logits, out.masks.visible, out.masks.position_dropped, model.smoothing)
    assert torch.equal(out.loss, losses.position_loss(out.logits, out.masks.visible, weights, model.smoothing))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_contrastive_logits_are_float32(dtype):
    a, b = torch.randn(2, 64, 32).unbind()
    exact = contrastive_loss(a, b, torch.tensor(100.0))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(contrastive_loss(a, b, torch.tensor(100.0)), exact)
        half = contrastive_loss(a.to(dtype), b.to(dtype), torch.tensor(100.0))
    assert half.dtype == torch.float32
    assert half.isfinite()


def test_full_precision_turns_autocast_off_and_back():
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with full_precision("cpu"):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16

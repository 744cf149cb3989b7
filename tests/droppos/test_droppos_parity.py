"""Whole-model, loss, target, schedule and clipping parity with what the official implementation recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from zoo.optim import clip_per_tensor, scaled_lr, warmup_cosine_lr
from zoo.papers.droppos import DropPos, weights
from zoo.papers.droppos.losses import feature_similarity, position_accuracy, position_loss, position_weights
from zoo.papers.droppos.masking import make_masks
from zoo.papers.droppos.smoothing import smoothing_map

pytestmark = pytest.mark.golden
TOLERANCE = dict(rtol=1e-4, atol=1e-5)


def cases(folder: Path, key: str) -> list[tuple[str, dict]]:
    """Every recorded case of the folder that holds `key`."""
    loaded = [(path.stem, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in loaded if key in case]
    if not found:
        pytest.skip(f"no case with {key!r} in {folder}")
    return found


def build(case: dict) -> DropPos:
    config = json.loads(case["config"])
    model = DropPos(
        image_size=config.pop("img_size"),
        mask_ratio=case["mask_ratio"],
        pos_mask_ratio=case["pos_mask_ratio"],
        sigma=case["sigma"],
        smoothing_distance="squared",
        smoothing_normalize="column",
        pixel_unshuffle=False,
        pos_weight=case.get("pos_weight_used_for_total", 1.0),
        **config,
    ).eval()
    model.load_weights(case["state_dict"])
    return model


def test_model_matches_the_official_one(golden_dir):
    for name, case in cases(golden_dir("droppos"), "encoder_out"):
        model = build(case)
        side = int(case["smooth"].shape[0] ** 0.5)
        recorded_map = smoothing_map(side, case["sigma"], distance="squared", normalize="column")
        torch.testing.assert_close(recorded_map, case["smooth"], rtol=0, atol=1e-6, msg=f"{name}: smoothing")
        model.smoothing = recorded_map
        masks = make_masks(
            case["noise_patch"],
            case["mask_ratio"],
            case["pos_mask_ratio"],
            position_noise=case["noise_pos"],
            shuffle_noise=case.get("noise_shuffle"),
            shuffle=model.hparams.shuffle,
        )
        assert torch.equal(masks.visible, case["ids_keep"]), name
        assert torch.equal(masks.restore, case["ids_restore"]), name
        assert torch.equal(masks.patch_masked, case["mask"]), name
        assert torch.equal(masks.position_dropped, case["mask_pos"]), name

        out = model.position_task(case["images"], masks)
        torch.testing.assert_close(out.tokens, case["encoder_out"], **TOLERANCE, msg=f"{name}: tokens")
        torch.testing.assert_close(out.logits, case["pos_logits"], **TOLERANCE, msg=f"{name}: logits")
        assert abs(out.position_loss.item() - case["loss_pos"].item()) < 1e-5, name
        assert abs(out.loss.item() - case["total_loss"].item()) < 1e-5, name
        assert abs(out.position_acc_weighted.item() - case["acc1"]) < 1e-5, name
        if model.hparams.attn_guide:
            visible = case["attn_visible_renorm"]
            torch.testing.assert_close(out.attention, visible, **TOLERANCE, msg=f"{name}: attention")
            full = feature_similarity(model.forward_tokens(case["images"]))
            torch.testing.assert_close(full, case["attn_full"], **TOLERANCE, msg=f"{name}: attention, full image")
        if model.hparams.multi_task:
            torch.testing.assert_close(out.pixels, case["mae_pred"], **TOLERANCE, msg=f"{name}: pixels")
            assert abs(out.pixel_loss.item() - case["loss_mae"].item()) < 1e-5, name

        out.loss.backward()
        grads = weights.to_official({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
        for key, expected in case["grads"].items():
            torch.testing.assert_close(grads[key], expected, **TOLERANCE, msg=f"{name}: gradient of {key}")


def test_true_grid_gives_the_recorded_loss(golden_dir):
    for name, case in cases(golden_dir("droppos"), "smooth_paper_grid196"):
        labels, dropped = case["ids_keep"], case["mask_pos"]
        true_map = smoothing_map(14, case["sigma"], distance="squared", normalize="column")
        weight = position_weights(case["pos_logits"], labels, dropped, true_map, case["attn_visible_renorm"])
        loss = position_loss(case["pos_logits"], labels, weight, true_map)
        assert abs(loss.item() - case["loss_pos_with_smooth_paper_grid196"].item()) < 1e-5, name
        # The model's switch builds the map of the official script by itself.
        model = DropPos(
            image_size=224, patch_size=16, embed_dim=24, depth=1, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
            decoder_num_heads=2, smoothing_grid="official", smoothing_distance="squared", smoothing_normalize="column",
        )  # fmt: skip
        torch.testing.assert_close(model.smoothing_at(case["sigma"]), case["smooth"], rtol=0, atol=1e-6)


def test_smoothing_maps(golden_dir):
    for _, case in cases(golden_dir("droppos"), "maps"):
        for name, expected in case["maps"].items():
            size, sigma = name.removeprefix("L").split("_sigma")
            ours = smoothing_map(int(int(size) ** 0.5), float(sigma), distance="squared", normalize="column")
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6, msg=name)


def test_loss_modes(golden_dir):
    for name, case in cases(golden_dir("droppos"), "loss_conf_attn"):
        logits, labels, dropped = case["pos_logits"], case["ids_keep"], case["mask_pos"]
        identity = torch.eye(logits.shape[-1])
        modes = {
            "conf_attn": (case["smooth"], case["attn"], True),
            "conf": (case["smooth"], None, True),
            "smooth": (case["smooth"], None, False),
            "onehot": (identity, None, False),
        }
        for mode, (target, attention, conf_ignore) in modes.items():
            weight = position_weights(logits, labels, dropped, target, attention, conf_ignore)
            assert abs(position_loss(logits, labels, weight, target) - case[f"loss_{mode}"]) < 1e-5, (name, mode)
            assert abs(position_accuracy(logits, labels, weight) - case[f"acc_{mode}"]) < 1e-5, (name, mode)


def test_learning_rate_and_per_tensor_clip(golden_dir):
    for _, case in cases(golden_dir("droppos"), "lr_epoch"):
        config = json.loads(case["lr_config"])
        lr = scaled_lr(config["blr"], config["eff_batch"])
        schedule = {key: config[key] for key in ("min_lr", "warmup_epochs")} | {"max_epochs": config["epochs"]}
        for epoch, expected in zip(case["lr_epoch"].tolist(), case["lr_value"].tolist(), strict=True):
            assert abs(warmup_cosine_lr(epoch, lr=lr, **schedule) - expected) < 1e-9
        parameters = []
        for gradient in case["clip_before"].values():
            parameters.append(torch.nn.Parameter(torch.zeros_like(gradient)))
            parameters[-1].grad = gradient.clone()
        norms = clip_per_tensor(parameters, case["clip_value"])
        torch.testing.assert_close(torch.stack(norms), case["clip_norms"])
        for parameter, expected in zip(parameters, case["clip_after"].values(), strict=True):
            torch.testing.assert_close(parameter.grad, expected)

"""Parity with what the official implementation recorded: cameras, raster, depth maps, losses, adapters, zero-shot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.nn.cameras import camera_rotation
from zoo.papers.clip2point import CLIP2Point, DualPathAdapter
from zoo.papers.clip2point.losses import nt_xent
from zoo.papers.clip2point.optim import Lamb
from zoo.papers.clip2point.rendering import clip_images, normalize_depth, rasterize, view_points
from zoo.papers.clip2point.weights import dpa_to_official, pretrain_to_official
from zoo.papers.clip2point.zeroshot import zero_shot_logits

pytestmark = pytest.mark.golden
Cases = Callable[[str], Iterator[dict[str, Any]]]


@pytest.fixture
def cases(golden_dir: Callable[[str], Path]) -> Cases:
    """`cases(kind)`: the recorded cases of a kind (by the keys they hold), whatever their files are called."""
    needed = {
        "render": {"elev", "raster_idx"},
        "norm": {"zbuf", "normalised"},
        "ntxent": {"out0", "out1"},
        "pretrain": {"rand_distance_draws"},
        "dpa": {"features_eval"},
        "lamb": {"lamb_steps"},
    }

    def read(kind: str) -> Iterator[dict[str, Any]]:
        found = False
        for path in sorted(golden_dir("clip2point").glob("*.pt")):
            case = torch.load(path, weights_only=True)
            if needed[kind] <= case.keys():
                found = True
                yield case
        if not found:
            pytest.skip(f"no {kind} case in the folder")

    return read


def network_of(case: dict[str, Any]) -> dict[str, Any]:
    clip = case["config"]["clip"]
    return {
        "image_size": clip["input_resolution"],
        "patch_size": clip["patch_size"],
        "width": clip["width"],
        "depth": clip["layers"],
        "num_heads": clip["heads"],
        "dim": clip["output_dim"],
    }


def seen_of(case: dict[str, Any]) -> torch.Tensor:
    return view_points(case["points"], case["elev"], case["azim"], case["dist"], bool(case["rot"]))


def test_cameras(cases: Cases) -> None:
    for case in cases("render"):
        views = len(case["elev"])
        rotation = camera_rotation(case["elev"], case["azim"])
        for cloud in range(len(case["points"])):
            torch.testing.assert_close(rotation, case["R"][cloud * views :][:views], atol=1e-6, rtol=0)
        torch.testing.assert_close(case["dist"].repeat(len(case["points"])), case["T"][:, 2])
        if "ndc_points" in case:
            seen = seen_of(case).flatten(0, 1)[: len(case["ndc_points"])]
            torch.testing.assert_close(seen, case["ndc_points"], atol=2e-6, rtol=0)


def test_raster(cases: Cases) -> None:
    for case in cases("render"):
        seen = seen_of(case).flatten(0, 1)
        raster = rasterize(seen, case["image_size"], case["points_radius"])
        # The recorded index counts through all clouds and views.
        offset = torch.arange(len(seen))[:, None, None] * seen.shape[1]
        packed = torch.where(raster.index >= 0, raster.index + offset, -1).to(case["raster_idx"].dtype)
        if "coverage" in case:
            coverage = (raster.index >= 0).float().mean(dim=(1, 2))
            torch.testing.assert_close(coverage, case["coverage"], atol=1e-3, rtol=0)
        kept = case.get("views_kept", list(range(len(packed))))
        same = packed[kept] == case["raster_idx"]
        assert same.float().mean() >= 0.999
        if "raster_zbuf" in case:
            depth = raster.depth[kept]
            torch.testing.assert_close(depth[same], case["raster_zbuf"][same], atol=2e-6, rtol=0)


def test_depth_maps(cases: Cases) -> None:
    for case in cases("render"):
        seen = seen_of(case)
        raster = rasterize(seen.flatten(0, 1), case["image_size"], case["points_radius"])
        images = clip_images(normalize_depth(raster.depth)).unflatten(0, seen.shape[:2])[:, :, 0]
        images = images[:, case["views_kept"]] if "views_kept" in case else images
        recorded = case["image_channel0"].float()
        tolerance = 1e-4 if case["image_channel0"].dtype == torch.float32 else 2e-3  # some are kept as float16
        close = (images - recorded).abs() < tolerance
        assert close.float().mean() >= 0.999


def test_depth_normalisation(cases: Cases) -> None:
    for case in cases("norm"):
        images = clip_images(normalize_depth(case["zbuf"]))
        torch.testing.assert_close(images, case["normalised"], atol=1e-5, rtol=1e-5)


def test_nt_xent(cases: Cases) -> None:
    for case in cases("ntxent"):
        assert nt_xent(case["out0"], case["out1"], case["temperature"]).item() == pytest.approx(case["loss"], abs=1e-5)
        assert nt_xent(case["out0"], case["out1"], 0.5).item() == pytest.approx(case["loss_t05"], abs=1e-5)


def test_pretraining_loss_and_gradients(cases: Cases) -> None:
    for case in cases("pretrain"):
        config = case["config"]
        model = CLIP2Point(**network_of(case), radius=config["points_radius"], temperature=config["temperature"])
        model.load_weights(case["state_dict"])
        out = model.contrast(
            case["points"],
            case["images"].float(),
            case["elev"],
            case["azim"],
            case["dist"],
            case["rand_distance_draws"],
        )
        out.loss.backward()
        assert out.image_loss.item() == pytest.approx(case["image_loss"], abs=2e-5)
        assert out.depth_loss.item() == pytest.approx(case["depth_loss"], abs=1e-5)
        assert out.loss.item() == pytest.approx(case["loss"], abs=2e-5)
        assert model.loss_weight.grad.item() == pytest.approx(case["weights_grad"], rel=1e-4)
        assert model.backbone.head.weight.grad.norm().item() == pytest.approx(case["point_proj_grad_norm"], rel=1e-4)
        assert all(parameter.grad is None for parameter in model.image_tower.parameters())
        # Back under the official names nothing is lost.
        back = pretrain_to_official(model.state_dict())
        assert back.keys() == case["state_dict"].keys()
        assert all(torch.equal(back[key], value) for key, value in case["state_dict"].items())


def test_gelu_instead_of_quick_gelu_is_noticed(cases: Cases) -> None:
    for case in cases("pretrain"):
        model = CLIP2Point(**network_of(case), radius=case["config"]["points_radius"])
        model.load_weights(case["state_dict"])
        for block in (*model.backbone.blocks, *model.image_tower.blocks):
            block.mlp.act = torch.nn.GELU()
        out = model.contrast(
            case["points"],
            case["images"].float(),
            case["elev"],
            case["azim"],
            case["dist"],
            case["rand_distance_draws"],
        )
        assert abs(out.loss.item() - case["loss"]) > 1e-3


def dpa_of(case: dict[str, Any]) -> DualPathAdapter:
    config = case["config"]
    model = DualPathAdapter(
        clip=None, network=network_of(case), views=config["views"], radius=config["points_radius"], dropout=0.0
    )
    model.load_weights(case["state_dict"])
    model.text_features = case["text_features"]
    return model


def test_dual_path_adapter(cases: Cases) -> None:
    for case in cases("dpa"):
        model = dpa_of(case).eval()
        torch.testing.assert_close(model(case["points"]), case["features_eval"], atol=1e-5, rtol=1e-4)
        logits = model.logits(case["points"])
        torch.testing.assert_close(logits, case["logits_eval"], atol=1e-5, rtol=1e-4)
        assert logits.abs().max() <= 1 + 1e-6
        back = dpa_to_official(model.state_dict())
        del back["text_features"]  # ours alone
        assert back.keys() == case["state_dict"].keys()
        assert all(torch.equal(back[key], value) for key, value in case["state_dict"].items())


def test_dual_path_adapter_in_training(cases: Cases) -> None:
    for case in cases("dpa"):
        model = dpa_of(case).train()
        features = model(case["points"])
        torch.testing.assert_close(features, case["features_train_nodropout"], atol=1e-5, rtol=1e-4)
        loss = torch.nn.functional.cross_entropy(features @ model.text_features.t(), case["labels"])
        assert loss.item() == pytest.approx(case["ce_train_nodropout"], abs=1e-5)
        loss.backward()
        with_gradient = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert with_gradient == {"adapter1", "adapter2"}


def test_zero_shot(cases: Cases) -> None:
    for case in cases("dpa"):
        config = case["config"]
        model = CLIP2Point(
            **network_of(case), image_tower=False, views=config["views"], upright=True, radius=config["points_radius"]
        )
        prefix = "pre_model."
        tower = {
            "point_model." + k.removeprefix(prefix): v for k, v in case["state_dict"].items() if k.startswith(prefix)
        }
        model.load_weights(tower)
        with torch.no_grad():
            views = model.encode_views(case["points"])
        recorded = case["zeroshot_view_features"]
        views_flat = torch.nn.functional.normalize(views.flatten(0, 1), dim=-1)
        scale = recorded.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(views_flat * scale, recorded, atol=1e-4, rtol=1e-3)
        logits = zero_shot_logits(views, case["text_features"])
        torch.testing.assert_close(logits, case["zeroshot_logits"], atol=1e-4, rtol=1e-4)
        assert torch.equal(logits.argmax(dim=1), case["zeroshot_pred"])
        shuffled = views[:, torch.randperm(views.shape[1])]
        torch.testing.assert_close(zero_shot_logits(shuffled, case["text_features"]), logits)


def test_lamb(cases: Cases) -> None:
    for case in cases("lamb"):
        params = [torch.nn.Parameter(value.clone()) for value in case["start"]]
        optimizer = Lamb(params, lr=case["lr"], weight_decay=case["weight_decay"])
        for grads, expected in zip(case["grads"], case["lamb_steps"], strict=True):
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad.clone()
            optimizer.step()
            for param, value in zip(params, expected, strict=True):
                torch.testing.assert_close(param.detach(), value, atol=1e-6, rtol=1e-5)

"""Metrics by hand, heads, losses, the fine-tuning module on all tasks, and `zoo faces`."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from datamodules.faces.tasks import FaceTaskDataModule
from zoo.cli.app import main as zoo_main
from zoo.errors import ZooError
from zoo.papers.face_representation import FaceTask, metrics
from zoo.papers.face_representation.fewshot import fit_and_score
from zoo.papers.face_representation.heads import (
    HeatmapHead,
    MarginSoftmax,
    expected_points,
    heatmap_loss,
)
from zoo.papers.face_representation.mesh_decoder import MeshDecoder, average, hierarchy
from zoo.papers.face_representation.tasks import EVERY_TASK, HEADLINES, Encoder, TaskHead, ccc_loss, score


def test_icc_by_hand():
    # Rows (1, 2), (2, 4), (3, 3): grand mean 2.5, row means 1.5, 3, 3, column means 2, 3.
    # Between rows 2 (1 + .25 + .25) = 3, MS 1.5; total 5.5; columns 3 * .5 = 1.5; error 1, MS .5; (1.5 - .5) / 2.
    assert metrics.icc(np.array([1, 2, 3]), np.array([2, 4, 3])) == pytest.approx(0.5)
    label = np.array([0.0, 1, 3, 5])
    assert metrics.icc(label + 7, label) == pytest.approx(1)  # consistency: an offset does not count
    assert metrics.icc(-label, label) == pytest.approx(-1)
    assert metrics.icc(np.ones(3), np.ones(3)) == 0


def test_ccc_pcc_sagr_by_hand():
    x, y = np.array([0.0, 1, 2]), np.array([1.0, 2, 3])
    assert metrics.pcc(x, y) == pytest.approx(1)
    assert metrics.ccc(x, y) == pytest.approx(2 * (2 / 3) / (2 / 3 + 2 / 3 + 1))
    assert metrics.ccc(x, x) == pytest.approx(1)
    assert metrics.ccc(np.ones(3), np.ones(3)) == 0
    assert metrics.pcc(np.ones(3), x) == 0
    assert metrics.sagr(np.array([-1, 2, -3, 0.0]), np.array([-2, 1, 3, 0])) == 0.75
    assert metrics.rmse(np.array([0.0, 3]), np.array([4.0, 3])) == pytest.approx(math.sqrt(8))
    loss = ccc_loss(torch.tensor([[0.0, 5], [1, 6], [2, 7]]), torch.tensor([[1.0, 5], [2, 6], [3, 7]]))
    assert loss.item() == pytest.approx(1 - (metrics.ccc(x, y) + 1) / 2)


def test_landmark_errors_by_hand():
    truth = np.zeros((2, 2, 2))
    found = np.array([[[3.0, 4], [0, 0]], [[0, 1], [0, 0]]])
    errors = metrics.nme(found, truth, np.array([10.0, 5]))
    np.testing.assert_allclose(errors, [0.25, 0.1])
    assert metrics.failure_rate(errors, 0.1) == 0.5
    assert metrics.auc(np.array([0.0, 0.05, 0.2])) == pytest.approx((1 + 0.5 + 0) / 3)
    truth[0, 0] = np.nan
    assert metrics.nme(found, truth, np.array([10.0, 5]))[0] == 0


def test_tar_at_far_by_hand():
    scores = np.array([0.9, 0.7, 0.4, 0.8, 0.5, 0.3, 0.1, 0.0])
    same = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    found = metrics.tar_at_far(scores, same, (0.0, 0.2, 0.4, 1.0))
    # No impostor passes above 0.8: only 0.9. One of five passes down to above 0.5: 0.9 and 0.7. Two: all above 0.3.
    assert found == {0.0: pytest.approx(1 / 3), 0.2: pytest.approx(2 / 3), 0.4: 1.0, 1.0: 1.0}
    assert metrics.tar_at_far(scores, same, (1e-4,))[1e-4] == pytest.approx(1 / 3)
    with pytest.raises(ZooError, match="different people"):
        metrics.tar_at_far(scores, np.ones(8, bool))


def test_pair_accuracy_judges_each_fold_by_the_others():
    scores, same = np.tile([0.9, 0.1], 10), np.tile([True, False], 10)
    assert metrics.pair_accuracy(scores, same) == (1.0, 0.0)
    assert metrics.pair_accuracy(-scores, same)[0] <= 0.5


def test_large_test_sets_are_compared_in_drawn_pairs():
    identities = np.repeat(np.arange(30), 20)[np.random.default_rng(0).permutation(600)]
    every = metrics.choose_pairs(identities)
    assert len(every) == 600 * 599 // 2
    assert every[:, 2].sum() == 30 * 190
    for most, same in ((20_000, 30 * 190), (4_000, 2_000)):  # all of the same person, and a part of them
        pairs = metrics.choose_pairs(identities, most)
        assert len(np.unique(np.sort(pairs[:, :2], axis=1), axis=0)) == len(pairs), "no pair twice"
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert ((identities[pairs[:, 0]] == identities[pairs[:, 1]]) == pairs[:, 2]).all()
        assert 0.75 * same < pairs[:, 2].sum() <= same
        assert 0.4 * most < (pairs[:, 2] == 0).sum() <= most // 2
        assert (pairs == metrics.choose_pairs(identities, most)).all()
    features = np.random.default_rng(1).normal(size=(600, 3))
    chunked = metrics.pair_similarity(features, pairs, chunk=7)
    np.testing.assert_allclose(chunked, (features[pairs[:, 0]] * features[pairs[:, 1]]).sum(axis=1))


def test_templates_pool_media_first():
    features = np.array([[1.0, 0], [1, 0], [0, 1], [0, 2]])
    numbers, pooled = metrics.pool_templates(features, np.array([5, 5, 5, 9]), np.array([1, 1, 2, 3]))
    assert numbers.tolist() == [5, 9]
    np.testing.assert_allclose(pooled, [[math.sqrt(0.5), math.sqrt(0.5)], [0, 1]])


# ---------------------------------------------------------------------- heads


def test_heat_maps_read_out_where_they_peak():
    maps = torch.full((1, 1, 8, 8), -50.0)
    maps[0, 0, 2, 5] = 50
    torch.testing.assert_close(expected_points(maps)[0, 0], torch.tensor([5.5 / 8, 2.5 / 8]))
    maps[0, 0, 2, 6] = 50
    torch.testing.assert_close(expected_points(maps)[0, 0, 0], torch.tensor(6 / 8))


def test_heat_map_loss_is_least_at_the_truth_and_passes_over_unknown_points():
    points = torch.tensor([[[0.3, 0.6], [float("nan"), 0.5]]])
    right, wrong = torch.full((2, 1, 2, 10, 10), 0.0).unbind()
    cells = (torch.arange(10) + 0.5) / 10
    for maps, (x, y) in ((right, (0.3, 0.6)), (wrong, (0.7, 0.2))):
        maps[0, 0] = -50 * ((cells[None] - x) ** 2 + (cells[:, None] - y) ** 2)
    assert heatmap_loss(right, points) < heatmap_loss(wrong, points)
    right.requires_grad_()
    heatmap_loss(right, points).backward()
    assert right.grad.isfinite().all()
    assert right.grad[0, 1].abs().sum() == 0


def test_margins_by_hand():
    embedding = nn.functional.normalize(torch.tensor([[1.0, 1.0]]), dim=1)
    for kind, right in (("cos", math.cos(math.pi / 4) - 0.35), ("arc", math.cos(math.pi / 4 + 0.5))):
        head = MarginSoftmax(2, 2, kind, scale=4.0)
        head.weight.data.copy_(torch.eye(2))
        logits = torch.tensor([[4 * right, 4 * math.cos(math.pi / 4)]])
        expected = nn.functional.cross_entropy(logits, torch.tensor([0]))
        torch.testing.assert_close(head(embedding, torch.tensor([0])), expected, rtol=1e-5, atol=1e-5)
    embedding = torch.tensor(
        [[-1.0, 0.0]], requires_grad=True
    )  # the opposite direction: still a gradient, still harder
    head = MarginSoftmax(2, 2, "arc")
    head.weight.data.copy_(torch.eye(2))
    head(embedding, torch.tensor([0])).backward()
    assert embedding.grad.isfinite().all()


def test_mesh_decoder_starts_from_the_mean_and_mixes_neighbours():
    ((count, near, down),) = hierarchy(torch.tensor([[0, 1, 2]]), 4)
    assert count == 4
    assert down.shape == (2, 0)
    x = torch.randn(2, 4, 3, requires_grad=True)
    expected = torch.stack([(x[:, 1] + x[:, 2]) / 2, (x[:, 0] + x[:, 2]) / 2, (x[:, 0] + x[:, 1]) / 2], dim=1)
    out = average(x, near, 4)
    torch.testing.assert_close(out[:, :3], expected)
    assert not out[:, 3].any()  # a vertex alone
    weight = torch.randn(2, 4, 3)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    torch.testing.assert_close(grad, torch.autograd.grad((expected * weight[:, :3]).sum(), x)[0])
    template = torch.randn(4, 3)
    head = MeshDecoder(6, 4, torch.tensor([[0, 1, 2]]), template=template)
    assert head(torch.randn(5, 6)).shape == (5, 4, 3)
    nn.init.zeros_(head.out.weight)
    nn.init.zeros_(head.out.bias)
    torch.testing.assert_close(head(torch.randn(5, 6))[0], template)


def grid_mesh(side: int) -> torch.Tensor:
    corner = torch.arange(side * side).reshape(side, side)
    a, b, c, d = (part.flatten() for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:]))
    return torch.cat([torch.stack([a, b, c], dim=1), torch.stack([b, d, c], dim=1)])


def test_large_meshes_grow_from_a_coarse_graph():
    levels = hierarchy(grid_mesh(60), 3600)
    counts = [count for count, _, _ in levels]
    assert counts[0] == 3600
    assert counts[-1] <= 256
    assert all(fine > 2 * coarse for fine, coarse in pairwise(counts))
    for (count, near, down), (coarser, _, _) in pairwise(levels):
        assert (near[0].diff() >= 0).all()
        assert near.max() < count
        assert set(down[0].tolist()) == set(range(count)), "every vertex hangs on the coarser graph"
        assert set(down[1].tolist()) == set(range(coarser))
    head = MeshDecoder(8, 3600, grid_mesh(60), channels=4, blocks=1)
    out = head(torch.randn(2, 8))
    out.square().sum().backward()
    assert out.shape == (2, 3600, 3)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    again = MeshDecoder(8, 3600, channels=4, blocks=1, mesh=head.mesh)  # as a checkpoint makes it
    again.load_state_dict(head.state_dict())
    given = torch.randn(3, 8)
    torch.testing.assert_close(again.eval()(given), head.eval()(given))


def test_heads_take_half_precision_and_say_what_they_do_not_know():
    head = HeatmapHead([4, 8], 3, width=8)
    with torch.autocast("cpu", torch.bfloat16):
        out = head([torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)])
        loss = heatmap_loss(out, torch.rand(2, 3, 2))
    assert loss.dtype == torch.float32
    with pytest.raises(ZooError, match="Did you mean 'landmarks'"):
        TaskHead("landmark", [4], 3)
    with pytest.raises(ZooError, match="options"):
        TaskHead("action_units", [4], 3, {"depth": 2})


def test_scores_have_their_headline():
    rng = np.random.default_rng(0)
    whole = np.arange(6) % 3
    for task in EVERY_TASK:
        target = whole if task in ("recognition", "attributes") else rng.normal(size=(6, 2 if "val" in task else 4))
        if task in ("landmarks", "reconstruction3d"):
            target = rng.normal(size=(6, 4, 3))
        prediction = np.eye(3)[whole] if target is whole else target
        found = score(task, prediction, target, np.ones(6))[HEADLINES[task].key]
        assert found == pytest.approx(0 if not HEADLINES[task].higher else 100 if target is whole else 1), task


# ---------------------------------------------------------------------- all tasks, end to end


def task_data(task: str, **options) -> FaceTaskDataModule:
    return FaceTaskDataModule(task=task, image_size=32, batch_size=8, rendered_train=16, rendered_test=8,
                              rendered_identities=4, num_workers=0, **options)  # fmt: skip


OPTIONS = {"recognition": {"embed_dim": 8}, "landmarks": {"width": 8}, "reconstruction3d": {"channels": 4}}


@pytest.mark.parametrize("task", EVERY_TASK)
def test_a_task_trains_and_its_checkpoint_loads_alone(task, tmp_path, monkeypatch):
    import lightning as L

    torch.manual_seed(0)
    mode = "frozen" if task == "action_units" else "finetune"
    model = FaceTask(task, network="resnet10t", head_options=OPTIONS.get(task), mode=mode)
    data = task_data(task)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    before = model.backbone.conv1[0].weight.clone()
    trainer.fit(model, datamodule=data)
    assert torch.equal(before, model.backbone.conv1[0].weight) == (mode == "frozen")
    assert math.isfinite(float(trainer.callback_metrics["val/headline"]))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = zoo.load(tmp_path / "x.ckpt")
    given = loaded.preprocess(data.raw_sample())
    torch.testing.assert_close(loaded(given), model.eval()(given))


def test_a_regression_starts_at_the_mean_of_its_labels():
    import lightning as L

    for task in ("reconstruction3d", "action_units", "valence_arousal"):
        model, data = FaceTask(task, network="resnet10t"), task_data(task, shot=8.0)
        trainer = L.Trainer(max_steps=0, accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.datamodule, model._trainer = data, trainer
        model.setup("fit")
        labels = torch.stack([data.data["train"][int(index)]["target"] for index in data.chosen()])
        assert len(labels) == 8
        with torch.no_grad():
            out = model.eval()(torch.randn(3, 3, 32, 32))
        torch.testing.assert_close(out, labels.mean(dim=0).expand_as(out), rtol=1e-4, atol=1e-5)


def test_task_and_data_must_agree():
    import lightning as L

    model = FaceTask("landmarks", network="resnet10t")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ZooError, match=r"data\.task"):
        trainer.fit(model, datamodule=task_data("action_units"))
    with pytest.raises(ZooError, match="flip"):
        task_data("landmarks", flip=0.5)
    with pytest.raises(ZooError, match="no data set 'disfa'"):
        task_data("landmarks", dataset="disfa")
    with pytest.raises(ZooError, match="either"):
        FaceTask("landmarks")


def test_few_shot_fitting_is_the_same_again_and_learns():
    import timm

    from datamodules.faces.rendered_tasks import rendered_tasks

    data = rendered_tasks(32, 40, 20, 8)["landmarks"]
    encoder = Encoder(timm.create_model("resnet10t", num_classes=0))
    options = dict(normalize=lambda images: images.float() / 255 - 0.5, image_size=32, batch_size=16)
    short, _ = fit_and_score(encoder, "landmarks", data, range(40), steps=2, **options)
    first, prediction = fit_and_score(encoder, "landmarks", data, range(40), steps=40, **options)
    again, _ = fit_and_score(encoder, "landmarks", data, range(40), steps=40, **options)
    assert first == again
    assert prediction.shape == (20, 68, 2)
    assert first["nme"] < short["nme"]
    before = encoder.backbone.conv1[0].weight.clone()
    fit_and_score(encoder, "landmarks", data, range(8), mode="finetune", steps=1, **options)
    assert torch.equal(before, encoder.backbone.conv1[0].weight), "fine-tuning works on a copy"


def test_heads_look_at_the_middle_stages():
    import timm

    encoder = Encoder(timm.create_model("resnet10t", num_classes=0)).eval()
    head = TaskHead("action_units", encoder.widths(64), 3, {"grid": 2}).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (given,) = head.look(encoder, images)
        third, fourth = encoder.maps(images)[1:3]
    assert head.width == given.shape[1] == 4 * (third.shape[1] + fourth.shape[1])
    torch.testing.assert_close(given[:, 0], third[:, 0, : third.shape[-1] // 2, : third.shape[-1] // 2].mean((1, 2)))
    assert head(list(given[None])).shape == (2, 3)
    with pytest.raises(ZooError, match="grid"):
        TaskHead("landmarks", encoder.widths(64), 3, {"grid": 2})


def test_a_reference_comes_from_the_cache_or_not_at_all(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    from zoo.papers.face_representation.report import cached_network

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    assert cached_network("resnet10t") is None
    weights = timm.create_model("resnet10t").state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _, file: str(tmp_path / file) if "safe" in file else None
    )
    torch.testing.assert_close(cached_network("resnet10t").conv1[0].weight, weights["conv1.0.weight"])


@pytest.mark.parametrize("network", ["resnet10t", "convnext_atto", "test_vit"])
def test_any_timm_network_gives_maps_and_pooled_features(network):
    import timm

    encoder = Encoder(timm.create_model(network, num_classes=0)).eval()
    size = 160 if network == "test_vit" else 64
    widths = encoder.widths(size)
    with torch.no_grad():
        maps, pooled = encoder.maps(torch.zeros(2, 3, size, size)), encoder.pooled(torch.zeros(2, 3, size, size))
    assert [level.shape[1] for level in maps] == widths
    assert pooled.shape == (2, widths[-1])


def test_the_weights_in_the_package_know_more_of_faces_than_untrained_ones():
    from datamodules.base import normalize
    from datamodules.face_representation import MEAN, STD
    from datamodules.faces.rendered_tasks import rendered_tasks
    from zoo.papers.face_representation.report import _untrained

    model = zoo.load("face-swav-drawn")
    data = rendered_tasks(64, 100, 80, 20, seed=5)["landmarks"]
    images, points = (
        {part: torch.stack([data[part][i][key] for i in range(len(data[part]))]) for part in ("train", "test")}
        for key in ("image", "target")
    )

    def error(encoder: Encoder) -> float:
        """Of ridge regression on the middle maps: mean distance of a landmark, as a share of the picture."""
        with torch.no_grad():
            seen = {part: encoder.grid(normalize(images[part], MEAN, STD), 4).double() for part in images}
        mean, spread = seen["train"].mean(dim=0), (seen["train"].var(dim=0) + 1e-3).sqrt()
        known, unseen = ((seen[part] - mean) / spread for part in ("train", "test"))
        target = points["train"].flatten(1).double()
        kernel = known @ known.T + 3000 * torch.eye(len(known))
        found = unseen @ known.T @ torch.linalg.solve(kernel, target - target.mean(dim=0)) + target.mean(dim=0)
        return (found.unflatten(1, (-1, 2)) - points["test"]).norm(dim=-1).mean().item()

    trained = error(Encoder(model.backbone))
    for seed in range(2):
        assert trained < 0.96 * error(Encoder(_untrained(model, seed).backbone))


def test_commands(tmp_path, capsys, monkeypatch):
    zoo_main(["faces", "sheet", str(tmp_path / "s.png"), "--identities", "2", "--pictures", "1", "--size", "32"])
    assert Image.open(tmp_path / "s.png").size == (64, 32)
    words = "--shot 8 --shot 0.5 --seed 0 --steps 2 --image-size 32 --drawn 24 --task landmarks --task action_units"
    zoo_main(["faces", "benchmark", "-e", "random:resnet10t", "-o", str(tmp_path / "b"), *words.split()])
    scores = json.loads((tmp_path / "b" / "benchmark.json").read_text())["scores"]["random:resnet10t"]
    assert set(scores) == {"landmarks", "action_units"}
    assert set(scores["landmarks"]) == {"8", "0.5"}
    assert (tmp_path / "b" / "benchmark.png").is_file()
    table = (tmp_path / "b" / "benchmark.md").read_text().splitlines()
    assert len(table) == 2 + 4
    assert len({line.count("|") for line in table}) == 1
    more = f"{words} --shot 30"  # 24 pictures: that shot is left out, and said
    with pytest.raises(SystemExit):  # the second name cannot be had: nothing is fitted before that is known
        zoo_main(
            ["faces", "benchmark", "-e", "random:resnet10t", "-e", "no-such", "-o", str(tmp_path / "d"), *more.split()]
        )
    assert "24 training samples: without --shot 30" in capsys.readouterr().err
    assert not (tmp_path / "d" / "benchmark.json").exists()
    capsys.readouterr()
    for bad in (
        ["benchmark", "-e", "timm:resnet5", "-o", "x", "--task", "landmarks", "--drawn", "20", "--image-size", "32"],
        ["benchmark", "-e", "x", "-o", "x", "--data", "landmarks"],
        ["benchmark", "-e", "x", "-o", "x", "--task", "landmarks", "--data", "action_units=disfa:x"],
        [
            "benchmark",
            "-e",
            "random:resnet10t",
            "-o",
            str(tmp_path / "s.png" / "b"),
            "--drawn",
            "20",
            "--image-size",
            "32",
        ],
        [
            "benchmark",
            "-e",
            "random:resnet10t",
            "-o",
            str(tmp_path / "c"),
            "--drawn",
            "20",
            "--image-size",
            "32",
            "--shot",
            "30",
        ],
        ["shots", "landmarks", "300w", str(tmp_path), "-o", "x", "--shot", "half"],
    ):
        with pytest.raises(SystemExit) as stop:
            zoo_main(["faces", *bad])
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_pictures_show_what_they_say():
    from zoo.papers.face_representation.figures import draw_curves, draw_landmarks, draw_prototypes
    from zoo.papers.face_representation.tasks import HEADLINES

    rng = np.random.default_rng(0)
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    scores = rng.uniform(-1, 1, (40, 6))
    scores[:, 1] = scores[:, 0] - 1e-3  # a prototype beside another one comes last
    for row in range(40):
        images[row] = row
    figure = draw_prototypes(images, scores, prototypes=5, faces=4)
    shown = [
        tuple(int(axis.get_images()[0].get_array()[0, 0, 0]) for axis in figure.axes[4 * r : 4 * r + 4])
        for r in range(5)
    ]
    assert len(set(shown)) == 5
    points = rng.uniform(0, 1.2, (2, 68, 2))
    figure = draw_landmarks([images[0], images[1]], points, {"one": points, "two": points + 0.125})
    assert [axis.get_title() for axis in figure.axes] == ["0.0 px"] * 2 + ["1.4 px"] * 2
    assert {axis.get_xlim() for axis in figure.axes} == {(0, 8)}
    table = {"a": {"landmarks": {"50": [3.0, 4.0], "0.1": [2.0]}}, "b": {"landmarks": {"50": [5.0], "0.1": [3.0]}}}
    assert len(draw_curves(table, HEADLINES).legends) == 1


def test_verification_report(tmp_path, monkeypatch):
    from datamodules.faces.renderer import FaceRenderer
    from zoo.papers.face_representation import SwAV

    draw = FaceRenderer(32, 4)
    for index in range(12):
        folder = tmp_path / "faces" / f"p{index % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(index).image).save(folder / f"p{index % 4}_{index // 4 + 1:04d}.png")
    same = [f"p{i}\t1\t2" for i in range(4)]
    other = [f"p{i}\t1\tp{(i + 1) % 4}\t2" for i in range(4)]
    (tmp_path / "faces" / "pairs.txt").write_text("\n".join(["4", *same, *other]) + "\n")
    small = SwAV("resnet18", dict(layers=[1] * 4, channels=[8] * 4, stem_width=8), 32, 8, 8, 4).eval()
    monkeypatch.setattr("zoo.tasks.start.start_model", lambda name: small)
    zoo_main(["faces", "pairs", "any", str(tmp_path / "faces"), "-o", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert report["pairs"] == 8
    assert report["same"] == 4
    assert (tmp_path / "out" / "verification.png").is_file()

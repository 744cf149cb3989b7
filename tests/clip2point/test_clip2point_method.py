"""CLIP2Point's method: what learns, what stays, what a step draws; few-shot, zero-shot, weights, wrong input."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zoo
from datamodules.clip2point.primitives import CLASSES, write_collection
from zoo.errors import ZooError
from zoo.papers.clip2point import CLIP, CLIP2Point, DualPathAdapter
from zoo.papers.clip2point.clip import fill_prompts
from zoo.papers.clip2point.losses import nt_xent, retrieval_accuracy, weighted_sum
from zoo.papers.clip2point.network import ViewAdapter, build_tower
from zoo.papers.clip2point.weights import clip_from_official, clip_to_official
from zoo.papers.clip2point.zeroshot import probabilities, zero_shot_logits

TINY = dict(image_size=32, patch_size=16, width=24, depth=2, num_heads=2, dim=8)
TEXT = dict(text_width=16, text_depth=1, text_heads=2, context_length=16)


def model(**more: object) -> CLIP2Point:
    torch.manual_seed(0)
    return CLIP2Point(**(TINY | dict(radius=0.1, num_points=64) | more))


def batch(size: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    points = F.normalize(torch.randn(size, 64, 3, generator=generator), dim=-1)
    images = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    angles = torch.zeros(size, 1)
    return images, points, angles, angles + 90


def test_nt_xent_is_simclrs() -> None:
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    z = F.normalize(torch.cat([a, b]), dim=1)
    rows = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        logits = z[i] @ z[others].t() / 0.2
        rows.append(F.cross_entropy(logits[None], torch.tensor([others.index((i + 4) % 8)])))
        assert len(logits) == 7  # 2 B - 1
    assert nt_xent(a, b, 0.2).item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


def test_total_loss_at_weight_one() -> None:
    loss = weighted_sum(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(1.0))
    assert loss.item() == pytest.approx(5 + math.log(2))


def test_one_step_moves_depth_tower_and_weight_only() -> None:
    module = model()
    images, points, elev, azim = batch()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    module.contrast(points, images, elev, azim).loss.backward()
    optimizer.step()
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("image_tower."), key


def test_both_towers_start_alike() -> None:
    module = model()
    assert all(torch.equal(v, module.image_tower.state_dict()[k]) for k, v in module.backbone.state_dict().items())
    assert module.loss_weight.item() == 1.0


def test_the_two_maps_differ_by_their_distance_only(monkeypatch: pytest.MonkeyPatch) -> None:
    module = model()
    images, points, elev, azim = batch()
    calls = []
    original = module._render_pairs.forward
    monkeypatch.setattr(module._render_pairs, "forward", lambda *a: calls.append(a) or original(*a))
    torch.manual_seed(3)
    module.contrast(points, images, elev, azim)
    _, seen_elev, seen_azim, dist = calls[0]
    assert torch.equal(seen_elev, elev.expand(-1, 2))
    assert torch.equal(seen_azim, azim.expand(-1, 2))
    assert dist.shape == (6, 2)
    assert (dist[:, 0] != dist[:, 1]).all()
    assert ((dist - 1).abs() <= 0.1).all()
    equal = module.contrast(points, images, elev, azim, draws=torch.full((2, 6, 1), 0.5))
    torch.testing.assert_close(*equal.depth_features)


def test_kept_image_features_give_the_same_loss() -> None:
    module = model()
    images, points, elev, azim = batch()
    draws = torch.rand(2, 6, 1)
    first = module.contrast(points, images, elev, azim, draws=draws)
    second = module.contrast(points, module.encode_images(images), elev, azim, draws=draws)
    torch.testing.assert_close(first.loss, second.loss)
    assert not first.image_features.requires_grad


def test_tower_has_clips_size() -> None:
    with torch.device("meta"):
        tower = build_tower()
        adapter = ViewAdapter(10)
    assert sum(p.numel() for p in tower.parameters()) == 87_849_216
    assert tower.pos_embed.shape[1] == 49 + 1
    assert sum(p.numel() for p in adapter.parameters()) == 2_886_666


def test_tower_equals_timms_clip_model() -> None:
    import timm

    theirs = timm.create_model("vit_base_patch32_clip_quickgelu_224", num_classes=8, img_size=64, depth=1).eval()
    ours = build_tower(64, 32, 768, 1, 12, 8).eval()
    state = theirs.state_dict()
    state.pop("head.bias").zero_()
    ours.load_state_dict(state)
    nn.init.zeros_(theirs.head.bias)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images))


def test_learning_beats_the_start() -> None:
    """A few steps on one batch of real pairs: retrieval goes up from where the random tower starts."""
    module = model()
    _, points, elev, azim = batch(16)
    points = points * torch.rand(16, 1, 3, generator=torch.Generator().manual_seed(2))
    features = torch.randn(16, 8, generator=torch.Generator().manual_seed(4))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    first = module.contrast(points, features, elev[:1].expand(16, 1), azim[:1].expand(16, 1))
    for _ in range(60):
        out = module.contrast(points, features, elev[:1].expand(16, 1), azim[:1].expand(16, 1))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    before = retrieval_accuracy(features, first.depth_features[0])
    after = retrieval_accuracy(features, out.depth_features[0])
    assert after > 0.8
    assert before < 0.4


# ---------------------------------------------------------------------- zero-shot


def test_zero_shot_sums_over_views() -> None:
    views, text = torch.randn(3, 5, 8), torch.randn(4, 8)
    logits = zero_shot_logits(views, text)
    cosines = F.normalize(views, dim=-1) @ F.normalize(text, dim=-1).t()
    torch.testing.assert_close(logits, cosines.sum(1))
    torch.testing.assert_close(zero_shot_logits(views[:, [4, 2, 0, 1, 3]], text), logits)
    p = probabilities(logits, 5)
    assert torch.equal(p.argmax(1), logits.argmax(1))


def test_classify_with_text_features(tmp_path: Path) -> None:
    module = model(image_tower=False).eval()
    points = np.random.default_rng(0).random((100, 3))
    text = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    found = module.classify(points, ["chair", "mug", "lamp"], text_features=text)
    assert set(found) == {"chair", "mug", "lamp"}
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    path = tmp_path / "cloud.npy"
    np.save(path, points)
    labels = ["chair", "mug", "lamp"]
    for again in ([module.classify(str(path), labels, text_features=text)],
                  module.classify([points, path], labels, text_features=text)):  # fmt: skip
        assert all(one == pytest.approx(found, rel=1e-3) for one in again)


@pytest.mark.parametrize("labels", [["chair"], [], "chair", ["chair", ""], ["mug", "mug"]])
def test_classify_refuses_labels_that_leave_no_choice(labels: object) -> None:
    with pytest.raises(ZooError, match=r"label|name"):
        model(image_tower=False).classify(np.random.default_rng(0).random((100, 3)), labels)


def test_classify_says_how_to_get_the_text_tower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from zoo import hub
    from zoo.download import DownloadError

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))

    def refuse(*args: object, **kwargs: object) -> None:
        raise DownloadError("Cannot download it: no network.")

    monkeypatch.setattr(hub, "download", refuse)
    with torch.device("meta"):
        module = CLIP2Point(**TINY, image_tower=False)
    with pytest.raises(ZooError, match=r"open_clip_model\.safetensors.*zoo add clip-vitb32"):
        module._text_tower()


def test_prompts() -> None:
    assert fill_prompts(["night stand"]) == ["image of a night stand"]
    with pytest.raises(ZooError, match=r"\{\}"):
        fill_prompts(["a"], "image of a thing")


# ---------------------------------------------------------------------- CLIP


def tiny_clip() -> CLIP:
    torch.manual_seed(1)
    return CLIP(**TINY, **TEXT).eval()


def test_clip_speaks_open_clips_language() -> None:
    clip = tiny_clip()
    assert clip.encode_names(["chair", "mug"]).shape == (2, 8)
    from open_clip.tokenizer import SimpleTokenizer

    assert SimpleTokenizer()(["a photo of a cat"])[0, :7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_clip_equals_open_clips() -> None:
    """The whole model of open_clip under OpenAI's names gives the same image and text features."""
    import open_clip

    theirs = open_clip.CLIP(
        embed_dim=8,
        vision_cfg=dict(layers=2, width=24, head_width=12, patch_size=16, image_size=32),
        text_cfg=dict(context_length=16, vocab_size=49408, width=16, heads=2, layers=1),
        quick_gelu=True,
    ).eval()
    ours = tiny_clip()
    ours.load_weights(theirs.state_dict())
    images, texts = torch.randn(2, 3, 32, 32), ["image of a chair", "image of a mug"]
    tokens = open_clip.tokenizer.SimpleTokenizer(context_length=16)(texts)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.encode_image(images), atol=1e-5, rtol=1e-4)
        text = theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close(ours.encode_text(texts), text, atol=1e-5, rtol=1e-4)
    official = clip_to_official(ours.state_dict())
    back = clip_from_official(official)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in ours.state_dict().items())


def test_names_without_a_text_tower_have_fixed_vectors() -> None:
    clip = CLIP(**TINY, text_depth=0)
    first, second = clip.encode_names(["a", "b"]), clip.encode_names(["b", "a"])
    assert torch.equal(first[0], second[1])
    assert not torch.equal(first[0], first[1])
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2))


def test_a_clip_without_language_refuses_words_it_never_learned() -> None:
    clip = CLIP(**TINY, text_depth=0, names=["chair", "cup"])
    assert torch.equal(clip.encode_names(["cup"], learned=True), clip.encode_names(["cup"]))
    clip.encode_names(["mug", "cup"])  # as fixed classes of a few-shot classifier any name will do
    with pytest.raises(ZooError, match="'mug'; it knows chair, cup"):
        clip.encode_names(["mug", "cup"], learned=True)


def test_the_shipped_encoder_names_a_generated_shape(tmp_path: Path) -> None:
    folder = write_collection(tmp_path / "shapes", {"train": 1, "test": 1}, 5)
    model = zoo.load("clip2point-shapes")
    right = 0
    for name in CLASSES:
        right += next(iter(model.classify(next((folder / name / "test").iterdir()), sorted(CLASSES)))) == name
    assert right >= 10


def test_training_starts_from_the_clip_unless_there_are_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = tiny_clip()
    monkeypatch.setattr("zoo.papers.clip2point.module.load_clip", lambda name: clip)
    trained = {key: value + 1 for key, value in model().state_dict().items()}
    for weights, expected in ((None, clip.backbone.head.weight), (trained, trained["backbone.head.weight"])):
        module = model(clip="some-clip")
        if weights is not None:
            module.load_weights(weights)
        module._trainer = SimpleNamespace(ckpt_path=None, datamodule=SimpleNamespace(prompt_sets=[["chair", "mug"]]))
        module.setup("fit")
        assert torch.equal(module.backbone.head.weight, expected)
        assert module.class_features[0].shape == (2, 8)


def test_a_clip_of_another_shape_is_refused() -> None:
    with pytest.raises(ZooError, match="another shape"):
        model(width=32).start_from(tiny_clip())


# ---------------------------------------------------------------------- weights


def test_official_checkpoint_gives_the_depth_tower_alone() -> None:
    source = model()
    nn.init.normal_(source.image_tower.head.weight)
    official = {f"module.{key}": value for key, value in source.official_state_dict().items()}
    assert "module.weights" in official
    encoder = model(image_tower=False)
    encoder.load_weights(official)
    assert {key.split(".")[0] for key in encoder.state_dict()} == {"backbone"}
    assert torch.equal(encoder.backbone.head.weight, source.backbone.head.weight)
    del official["module.point_model.proj"]
    with pytest.raises(ZooError, match=r"backbone\.head\.weight is missing"):
        encoder.load_weights(official)


# ---------------------------------------------------------------------- few-shot


def adapter(**more: object) -> DualPathAdapter:
    torch.manual_seed(0)
    module = DualPathAdapter(**(dict(clip=None, network=TINY, views=6, radius=0.1, num_points=64) | more))
    module.set_classes(["chair", "mug", "lamp"])
    return module


def test_only_the_adapters_learn() -> None:
    module = adapter()
    logits = module.logits(batch()[1])
    assert logits.shape == (6, 3)
    assert logits.abs().max() <= 1
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    with_gradient = {name.split(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert with_gradient == {"adapter1", "adapter2"}


def test_a_checkpoint_needs_no_backbone(tmp_path: Path) -> None:
    import zoo

    module = adapter()
    path = tmp_path / "a.ckpt"
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    again = zoo.load(path)
    points = np.random.default_rng(0).random((80, 3))
    assert again.classify(points) == module.eval().classify(points)
    with pytest.raises(ZooError, match="3 classes of its own"):
        again.classify(points, ["a", "b"])
    with pytest.raises(ZooError, match="upright"):
        again.classify(points, upright=False)


def test_single_cloud_batches_are_refused() -> None:
    module = adapter()
    with pytest.raises(ZooError, match="BatchNorm"):
        module.training_step((batch(1)[1], torch.tensor([0])), 0)


def test_classes_of_model_and_data_must_agree() -> None:
    module = DualPathAdapter(clip=None, network=TINY, views=6, class_names=["a", "b"])
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(prompt_names=["a", "b", "c"]))
    with pytest.raises(ZooError, match="3 classes, the model 2"):
        module.setup("fit")

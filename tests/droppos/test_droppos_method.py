"""What DropPos promises beyond the recorded cases: counts, equivariance, options that act, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.errors import ZooError
from zoo.module import count_parameters
from zoo.nn.patches import embed_patches, patchify, unpatchify
from zoo.papers.droppos import DropPos, weights
from zoo.papers.droppos.losses import position_loss, position_weights
from zoo.papers.droppos.masking import Masks, make_masks, take, wrong_positions
from zoo.papers.droppos.smoothing import sigma_at, smoothing_map

TINY = dict(
    image_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
    decoder_num_heads=2, mask_ratio=0.25,
)  # fmt: skip


def tiny(**kwargs) -> DropPos:
    torch.manual_seed(0)
    return DropPos(**{**TINY, **kwargs}).eval()


@pytest.mark.parametrize(
    ("embed_dim", "depth", "heads", "decoder_depth", "multi_task", "total", "trainable"),
    [
        (384, 12, 6, 2, False, 28_269_508, 28_193_860),
        (768, 12, 12, 2, False, 92_599_492, 92_448_196),
        (768, 12, 12, 8, False, 111_513_796, 111_362_500),
        (768, 12, 12, 2, True, 99_794_372, None),
        (1024, 24, 16, 2, False, 310_233_796, 310_032_068),
    ],
)
def test_parameter_counts_are_the_official_ones(embed_dim, depth, heads, decoder_depth, multi_task, total, trainable):
    with torch.device("meta"):
        sizes = dict(embed_dim=embed_dim, depth=depth, num_heads=heads, decoder_depth=decoder_depth)
        model = DropPos(**sizes, multi_task=multi_task)
    assert count_parameters(model) == total
    if trainable is not None:
        assert count_parameters(model, trainable_only=True) == trainable


def test_recipe_shapes_of_the_paper():
    masks = make_masks(torch.rand(2, 196), 0.75, 0.75)
    assert masks.visible.shape == (2, 49)
    assert masks.num_positioned == 12
    assert masks.position_dropped.sum(1).tolist() == [37, 37]
    assert masks.patch_masked.sum(1).tolist() == [147, 147]


def test_patches_are_what_a_convolution_sees():
    model, images = tiny(), torch.randn(2, 3, 32, 32)
    tokens = embed_patches(model.backbone.patch_embed, patchify(images, 8))
    torch.testing.assert_close(tokens, model.backbone.patch_embed(images), rtol=1e-5, atol=1e-5)
    assert torch.equal(unpatchify(patchify(images, 8), 8), images)


def test_a_dropped_position_is_really_gone():
    # Everything dropped: permuting the visible tokens must permute the logits and change nothing else.
    model = tiny(pos_mask_ratio=1.0, attn_guide=False)
    images = torch.randn(3, 3, 32, 32)
    masks = make_masks(torch.rand(3, 16), 0.25, 1.0)
    permutation = torch.rand(3, 12).argsort(1)
    shuffled = Masks(
        torch.cat([masks.visible.gather(1, permutation), masks.patch_order[:, 12:]], 1),
        masks.visible.gather(1, permutation), masks.position_order, masks.position_dropped, 0,
    )  # fmt: skip
    first, second = model.position_task(images, masks), model.position_task(images, shuffled)
    torch.testing.assert_close(take(first.logits, permutation), second.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-5, atol=1e-5)


def test_hidden_patches_do_not_reach_the_logits():
    model = tiny()
    images = torch.randn(2, 3, 32, 32)
    masks = make_masks(torch.rand(2, 16), 0.5, 0.75)
    patches = patchify(images, 8)
    noisy = torch.where(masks.patch_masked.unsqueeze(-1), torch.randn_like(patches), patches)
    first, second = model.position_task(images, masks), model.position_task(unpatchify(noisy, 8), masks)
    torch.testing.assert_close(first.logits, second.logits)
    assert not torch.equal(first.attention, second.attention)  # attentive reconstruction does see the full image


def test_last_block_of_the_guidance_skips_only_what_nobody_reads():
    model = tiny()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that a wrong order would show
            parameter.add_(0.1 * torch.randn_like(parameter))
        tokens = torch.randn(2, 16, model.backbone.embed_dim)
        torch.testing.assert_close(model.encode(tokens, 5), model.encode(tokens)[:, :5], rtol=1e-5, atol=1e-5)


def test_smoothing_of_the_paper():
    target = smoothing_map(14, 1.0)
    torch.testing.assert_close(target.sum(1), torch.ones(196))
    # Neighbours to the side and below weigh the same; a diagonal one exp(-sqrt 2) of the centre.
    centre = target[105]
    torch.testing.assert_close(centre[106], centre[119])
    torch.testing.assert_close(centre[120] / centre[105], torch.tensor(math.exp(-math.sqrt(2))))
    assert torch.equal(smoothing_map(14, 1 / 800), torch.eye(196))
    assert sigma_at(400, 800, 1.0) == 0.5
    assert sigma_at(799, 800, 1.0) == pytest.approx(0.00125)
    assert sigma_at(5, 10, 1.0, decay=False) == 1.0


def test_uniform_logits_cost_ln_n():
    labels = torch.rand(2, 196).argsort(1)[:, :49]
    dropped = torch.ones(2, 49, dtype=torch.bool)
    for sigma in (0.0, 1.0):  # rows of the paper's map sum to one, so smoothing changes nothing here
        target = smoothing_map(14, sigma)
        weight = position_weights(torch.zeros(2, 49, 196), labels, dropped, target)
        loss = position_loss(torch.zeros(2, 49, 196), labels, weight, target)
        assert loss.item() == pytest.approx(math.log(196), abs=1e-5)


def test_no_dropped_position_costs_nothing_and_is_finite():
    model = tiny(pos_mask_ratio=0.0)
    out = model.position_task(torch.randn(2, 3, 32, 32))
    assert out.loss.item() == 0.0
    out.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_attention_and_confidence_change_the_loss():
    images = torch.randn(4, 3, 32, 32)
    masks = make_masks(torch.rand(4, 16), 0.25, 0.75)
    plain = tiny(attn_guide=False).position_task(images, masks)
    guided = tiny(attn_guide=True).position_task(images, masks)
    assert guided.loss.item() != plain.loss.item()
    assert guided.position_acc.item() == plain.position_acc.item()
    torch.testing.assert_close(guided.attention.sum(1), torch.ones(4))
    # A model that is sure of everything has nothing left to learn from.
    logits = torch.nn.functional.one_hot(masks.visible, 16).float() * 100
    target = smoothing_map(4, 1.0)
    assert position_weights(logits, masks.visible, masks.position_dropped, target, conf_ignore=True).sum() == 0


def test_wrong_positions_are_the_dropped_ones_exchanged():
    masks = make_masks(torch.rand(2, 16), 0.25, 0.75)
    true = torch.arange(16.0)[masks.visible].unsqueeze(-1)
    torch.manual_seed(1)
    wrong = wrong_positions(true, masks)
    kept = ~masks.position_dropped
    assert torch.equal(wrong[kept], true[kept])
    assert not torch.equal(wrong, true)
    for row in range(2):
        dropped = masks.position_dropped[row]
        assert sorted(wrong[row][dropped].flatten().tolist()) == sorted(true[row][dropped].flatten().tolist())
    out = tiny(mask_token_type="wrong_pos").position_task(torch.randn(2, 3, 32, 32), masks)
    assert out.loss.isfinite()


def test_shuffle_changes_only_rounding_and_the_pixel_decoder_sees_true_places():
    images = torch.randn(2, 3, 32, 32)
    noise, position_noise = torch.rand(2, 16), torch.rand(2, 12)
    plain_masks = make_masks(noise, 0.25, 0.75, position_noise=position_noise)
    shuffled_masks = make_masks(noise, 0.25, 0.75, position_noise=position_noise, shuffle=True)
    plain = tiny(multi_task=True).position_task(images, plain_masks)
    shuffled = tiny(multi_task=True, shuffle=True).position_task(images, shuffled_masks)
    torch.testing.assert_close(plain.logits, shuffled.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.pixels, shuffled.pixels, rtol=1e-4, atol=1e-5)
    official = tiny(multi_task=True, shuffle=True, pixel_unshuffle=False).position_task(images, shuffled_masks)
    assert not torch.allclose(plain.pixels, official.pixels, atol=1e-3)


def test_official_names_there_and_back_are_the_identity():
    for kwargs in ({}, {"multi_task": True}):
        model = tiny(**kwargs)
        ours = model.state_dict()
        official = weights.to_official(ours)
        assert weights.is_official(official)
        assert not weights.is_official(ours)
        assert {"cls_token", "decoder_pred.weight", "mask_pos_token"} <= set(official)
        again = weights.from_official({f"module.{key}": value for key, value in official.items()})
        assert list(again) == list(ours)
        assert all(torch.equal(again[key], ours[key]) for key in ours)
        other = tiny(**kwargs, pos_mask_ratio=0.5)
        other.load_weights(official)
        assert torch.equal(other.decoder.pred.weight, model.decoder.pred.weight)


def test_weights_that_do_not_fit_are_named():
    official = weights.to_official(tiny().state_dict())
    missing = {key: value for key, value in official.items() if key != "decoder_pred.bias"}
    with pytest.raises(ZooError, match=r"decoder\.pred\.bias is missing"):
        tiny().load_weights(missing)
    with pytest.raises(ZooError, match="stray is not a parameter"):
        tiny().load_weights({**official, "stray": torch.zeros(1)})
    with pytest.raises(ZooError, match=r"backbone\.pos_embed has shape \(1, 17, 24\), the model needs \(1, 17, 36\)"):
        tiny(embed_dim=36).load_weights(official)


def test_encoder_is_a_plain_timm_vit():
    import timm

    model = tiny()
    other = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0)
    other.load_state_dict(model.backbone.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other.eval().forward_features(images), model.forward_tokens(images))
    torch.testing.assert_close(model(images), model.forward_tokens(images)[:, 1:].mean(1))


def test_bfloat16_step_keeps_gradients_and_a_float32_loss():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        out = model.position_task(torch.randn(4, 3, 32, 32))
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient under autocast"
            assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 30}, "multiple of patch_size"),
        ({"mask_ratio": 1.0}, "no patch visible"),
        ({"pos_mask_ratio": 1.5}, "share from 0 to 1"),
        ({"pos_weight": 0.05}, "multi_task"),
        ({"patch_size": 2, "smoothing_grid": "official"}, "too small"),
    ],
)
def test_options_that_cannot_work_are_refused(kwargs, message):
    with pytest.raises(ZooError, match=message):
        tiny(**kwargs)


def _learn(images: torch.Tensor, steps: int) -> float:
    """Trains a tiny model for some steps and returns its position accuracy on fresh draws."""
    torch.manual_seed(0)
    model = DropPos(**{**TINY, "embed_dim": 48, "num_heads": 4, "sigma": 0.5})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        loss = model.position_task(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return torch.stack([model.position_task(images[:256]).position_acc for _ in range(8)]).mean().item()


def test_learns_where_there_is_layout_and_only_there():
    torch.manual_seed(0)
    grid = torch.linspace(-1, 1, 32)
    layout = torch.stack([grid.expand(32, 32), grid.expand(32, 32).T, torch.zeros(32, 32)])
    pictures = layout + 0.05 * torch.randn(512, 3, 32, 32)
    chance = 1 / 16
    assert _learn(pictures, 200) > 10 * chance
    # Three known positions of twelve visible patches narrow the others down to 13 places: that is not learning.
    assert _learn(torch.randn(512, 3, 32, 32), 60) < 2 * chance


def test_compiles_without_graph_breaks():
    model, images = tiny(), torch.randn(2, 3, 32, 32)
    masks = make_masks(torch.rand(2, 16), 0.25, 0.75)
    compiled = torch.compile(model.position_task, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, masks).loss, model.position_task(images, masks).loss)
    assert compiled(images).loss.isfinite()

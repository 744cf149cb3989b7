"""The ideas of BM-MAE: who is hidden, what the loss counts, what the encoder and decoder do with absent sequences."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
import torch
from scipy import stats

import zoo
from zoo.errors import ZooError
from zoo.module import count_parameters
from zoo.nn.patches3d import patchify_3d, sincos_positions_3d, unpatchify_3d
from zoo.optim import capped_cosine_factor
from zoo.papers.bm_mae import BMMAE, weights
from zoo.papers.bm_mae.attention import dropout_attention, serves
from zoo.papers.bm_mae.downstream import Segmenter
from zoo.papers.bm_mae.masking import draw_masks, draw_shares, masks_from, num_visible, redraw_shares
from zoo.papers.bm_mae.network import MODALITIES, Attention, MultimodalViT

TINY = dict(image_size=16, patch_size=4, embed_dim=24, depth=3, num_heads=2, mlp_dim=32, decoder_embed_dim=12,
            decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=16, decoder_dropout=0.0)  # fmt: skip
SUBSETS = list(chain.from_iterable(combinations(MODALITIES, count) for count in range(1, 5)))


@pytest.fixture(scope="module")
def model() -> BMMAE:
    torch.manual_seed(0)
    return BMMAE(**TINY).eval()


def volumes(batch: int = 2, side: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, 1, side, side, side, generator=generator) for name in MODALITIES}


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
@pytest.mark.parametrize("ratio", [0.5, 0.6, 0.75, 0.9])
def test_exactly_so_many_tokens_are_visible(modalities, ratio):
    torch.manual_seed(0)
    masks = draw_masks(64, modalities, 64, ratio)
    visible = num_visible(64, modalities, ratio)
    assert masks.visible.shape == (64, visible)
    assert ((~masks.masked).sum((1, 2)) == visible).all()
    together = torch.cat([masks.visible, masks.hidden], dim=1)
    assert torch.equal(together.sort(1).values, torch.arange(64 * modalities).expand(64, -1))
    assert torch.equal(together.gather(1, masks.restore), torch.arange(64 * modalities).expand(64, -1))


def test_shares_follow_a_flat_dirichlet_and_differ_between_subjects():
    torch.manual_seed(0)
    shares = (~draw_masks(4000, 4, 512, 0.75).masked).float().sum(2) / 512
    for sequence in range(4):
        assert stats.kstest(shares[:, sequence].numpy(), stats.beta(1, 3).cdf).pvalue > 1e-3
    assert abs(float((shares < 0.05).float().mean()) - 0.143) < 0.01
    assert abs(np.corrcoef(shares[:-1, 0], shares[1:, 0])[0, 1]) < 0.06


def test_shares_above_what_a_sequence_has_are_drawn_again():
    torch.manual_seed(0)
    limit = 64 / num_visible(64, 4, 0.5)
    shares = draw_shares(4000, 4, limit)
    assert float(shares.max()) < limit
    flat = np.random.default_rng(0).dirichlet(np.ones(4), 20000)
    assert stats.ks_2samp(shares[:, 0].numpy(), flat[flat.max(1) < limit][:, 0]).pvalue > 1e-3
    # Row 0 alone is invalid: the official loop would stop there.
    draws = iter([torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.4, 0.6]])])
    assert torch.equal(redraw_shares(2, 0.8, lambda rows: next(draws)), torch.tensor([[0.4, 0.6], [0.5, 0.5]]))


def test_tokens_of_absent_sequences_are_never_visible():
    torch.manual_seed(0)
    present = torch.tensor([[True, False, True, True], [True, True, True, True], [False, True, False, True]])
    masks = draw_masks(3, 4, 64, 0.75, present=present)
    assert masks.visible.shape[1] == num_visible(64, 2, 0.75)
    assert masks.masked[~present].all()


def test_masks_of_the_user_hide_as_many_in_every_subject():
    hidden = torch.zeros(2, 4, 8)
    hidden[0, 0] = 1
    with pytest.raises(ZooError, match="different numbers"):
        masks_from(hidden)
    hidden[1, 2] = 1
    assert torch.equal(masks_from(hidden).masked, hidden.bool())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"mask_ratio": 1.0}, "between 0 and 1"),
    ({"mask_ratio": 0.999}, "leaves none"),
    ({"mask_ratio": 0.05}, "too low"),
    ({"image_size": 18}, "not a multiple"),
    ({"embed_dim": 20}, "multiple of 6"),
])  # fmt: skip
def test_impossible_arguments_say_so(arguments, message):
    with pytest.raises(ZooError, match=message):
        BMMAE(**(TINY | arguments))


# ---------------------------------------------------------------------- loss


def test_only_hidden_voxels_count(model):
    torch.manual_seed(0)
    data, masks = volumes(), model.draw_masks(2)
    before = model.restoration(data, masks).losses
    for hidden in (False, True):
        changed = {name: volume.clone() for name, volume in data.items()}
        patches = patchify_3d(changed["t2"], 4)
        token = int(torch.nonzero(masks.masked[0, 2] == hidden)[0])
        patches[0, token] += 3.0
        changed["t2"] = unpatchify_3d(patches, 4, (4, 4, 4))
        if hidden:  # the encoder does not see it, so only the target moves
            after = model.restoration(changed, masks).losses
            assert after[2] != before[2]
            torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]])
    prediction = model.predict(model.backbone.patches(data), masks).unflatten(1, (4, -1))
    target = torch.stack([patchify_3d(data[name], 4) for name in MODALITIES], dim=1)
    error = (prediction - target).square().mean(-1)
    expected = [(error[:, i] * masks.masked[:, i]).sum() / masks.masked[:, i].sum() for i in range(4)]
    torch.testing.assert_close(before, torch.stack(expected))
    torch.testing.assert_close(model.restoration(data, masks).loss, torch.stack(expected).sum())


def test_a_sequence_that_is_wholly_visible_has_no_loss_and_no_nan(model):
    hidden = torch.zeros(2, 4, 64)
    hidden[:, 1] = 1
    losses = model.restoration(volumes(), masks_from(hidden)).losses
    assert losses[1] > 0
    assert torch.equal(losses[[0, 2, 3]], torch.zeros(3))


def test_absent_sequences_are_not_in_the_loss(model):
    torch.manual_seed(0)
    data = volumes()
    present = torch.tensor([[True, True, False, True]] * 2)
    masks = model.draw_masks(2, present)
    losses = model.restoration(data | {"t2": torch.zeros_like(data["t2"])}, masks, present).losses
    other = model.restoration(data | {"t2": torch.full_like(data["t2"], 9.0)}, masks, present).losses
    torch.testing.assert_close(losses, other)
    assert losses[2] == 0


# ---------------------------------------------------------------------- networks


def official_shapes() -> dict[str, tuple[int, ...]]:
    """The key list of the released file, as its paper's code (MONAI 1.3) writes it."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, 768), "norm.weight": (768,), "norm.bias": (768,)}
    for name in MODALITIES:
        prefix = f"tokenizers.{name}.patch_embedding."
        shapes |= {prefix + "position_embeddings": (1, 512, 768), prefix + "patch_embeddings.bias": (768,),
                   prefix + "patch_embeddings.weight": (768, 1, 16, 16, 16)}  # fmt: skip
        shapes[f"decoder.modality_embeddings.{name}"] = (1, 1, 384)
    shapes |= {"decoder.mask_tokens": (1, 1, 384), "decoder.position_embeddings": (1, 512, 384),
               "decoder.decoder_embed.weight": (384, 768), "decoder.decoder_embed.bias": (384,),
               "decoder.decoder_norm.weight": (384,), "decoder.decoder_norm.bias": (384,),
               "decoder.decoder_pred.weight": (4096, 384), "decoder.decoder_pred.bias": (4096,)}  # fmt: skip
    blocks = [(f"blocks.{i}.", 768) for i in range(12)] + [(f"decoder.decoder_blocks.{i}.", 384) for i in range(3)]
    for prefix, d in blocks:
        shapes |= {prefix + f"{norm}.{kind}": (d,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {prefix + "attn.qkv.weight": (3 * d, d), prefix + "attn.qkv.bias": (3 * d,),
                   prefix + "attn.out_proj.weight": (d, d), prefix + "attn.out_proj.bias": (d,),
                   prefix + "mlp.linear1.weight": (1536, d), prefix + "mlp.linear1.bias": (1536,),
                   prefix + "mlp.linear2.weight": (d, 1536), prefix + "mlp.linear2.bias": (d,)}  # fmt: skip
    return shapes


def test_the_default_model_is_the_official_file_key_by_key():
    with torch.device("meta"):
        whole = BMMAE()
    own = {key: tuple(value.shape) for key, value in weights.to_official(whole.state_dict()).items()}
    assert own == official_shapes()
    assert count_parameters(whole) == 78_280_576
    assert count_parameters(whole, trainable_only=True) == 76_511_104
    assert count_parameters(whole.backbone) == 70_885_632
    assert count_parameters(whole.decoder) == 7_394_944
    with torch.device("meta"):
        for modalities, total in ((MODALITIES, 71_101_185), (("t1",), 60_482_049)):
            assert count_parameters(whole.make_classifier(modalities, 1)) == total - 18_432
        segmenter = whole.make_segmenter(MODALITIES, 3)
    assert count_parameters(segmenter, trainable_only=True) == 73_774_899 - 18_432


def test_official_weights_load_strictly_and_come_back(model):
    official = weights.to_official(model.state_dict())
    again = BMMAE(**TINY)
    again.load_weights({f"module.{key}": value for key, value in official.items()})
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    dead = {"blocks.0.norm_cross_attn.weight": torch.ones(24), "blocks.0.cross_attn.to_q.weight": torch.ones(24, 24)}
    again.load_weights(official | dead)  # what recent MONAI adds and nothing uses
    with pytest.raises(ZooError, match=r"backbone\.norm\.bias is missing"):
        again.load_weights({key: value for key, value in official.items() if key != "norm.bias"})
    with pytest.raises(ZooError, match="stranger is not a parameter"):
        again.load_weights(official | {"stranger": torch.ones(1)})


def test_positions():
    table = sincos_positions_3d((8, 8, 8), 768)[0]
    token = (0 * 8 + 1) * 8 + 1
    for channel, value in ((0, 0.84147), (128, 0.54030), (256, 0.0), (384, 1.0)):
        assert abs(float(table[token, channel]) - value) < 1e-5
    with pytest.raises(ValueError, match="multiple of 6"):
        sincos_positions_3d((2, 2, 2), 16)


def test_patches_come_back():
    volume = torch.randn(2, 1, 8, 12, 4)
    assert torch.equal(unpatchify_3d(patchify_3d(volume, 4), 4, (2, 3, 1)), volume)


@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_every_subset_runs_from_one_set_of_weights(model, subset):
    data = {name: volume for name, volume in volumes(1).items() if name in subset}
    turned = dict(reversed(data.items()))
    with torch.no_grad():
        tokens = model.forward_tokens(data)
        assert tokens.shape == (1, 1 + 64 * len(subset), 24)
        assert model(data).shape == (1, 24)
        classifier = model.make_classifier(subset, 2).eval()
        segmenter = model.make_segmenter(subset, 3).eval()
        torch.testing.assert_close(classifier.encoder(data), tokens)
        assert segmenter(data).shape == (1, 3, 16, 16, 16)
        for network in (model, classifier, segmenter):
            torch.testing.assert_close(network(turned), network(data), rtol=0, atol=0)


def test_segmenter_is_monais_unetr_where_that_exists():
    """Same decoder weights, hidden states as MONAI's own ViT would give them: the same logits."""
    from monai.networks.nets import UNETR

    torch.manual_seed(0)
    arguments = dict(
        image_size=32, patch_size=16, dim=48, depth=12, num_heads=2, mlp_dim=24, modalities=["t1", "flair"]
    )
    ours = Segmenter(MultimodalViT(**arguments), arguments, 3).eval()
    theirs = UNETR(in_channels=2, out_channels=3, img_size=32, hidden_size=48, mlp_dim=24, num_heads=2).eval()
    decoder = {key: value for key, value in ours.state_dict().items() if not key.startswith("encoder.")}
    missing, unexpected = theirs.load_state_dict(decoder, strict=False)
    assert not unexpected
    assert all(key.startswith("vit.") for key in missing)
    data = {name: torch.randn(1, 1, 32, 32, 32) for name in ("t1", "flair")}

    class Stub(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
            return ours.encoder.hidden_states({"t1": image[:, :1], "flair": image[:, 1:]})

    theirs.vit = Stub()
    with torch.no_grad():
        expected = theirs(torch.cat([data["t1"], data["flair"]], dim=1))
        torch.testing.assert_close(ours(data), expected, rtol=0, atol=1e-5)


def test_attention_with_dropout_for_cpus():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 33, 8, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))

    def again(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return dropout_attention(*tensors, 0.3)

    # v = identity shows the probabilities themselves: dropped or scaled up, at random, anew for each head and subject.
    eye = torch.eye(33, dtype=torch.float64).expand(2, 3, 33, 33)
    probabilities = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    found = again(q, k, eye)
    kept = found != 0
    torch.testing.assert_close(found, torch.where(kept, probabilities / 0.7, 0.0), rtol=1e-4, atol=0)
    assert abs(float(kept.double().mean()) - 0.7) < 0.02
    assert not torch.equal(kept[0, 0], kept[0, 1])
    assert not torch.equal(kept[0, 0], kept[1, 0])
    torch.testing.assert_close(again(q, k, v), found.detach() @ v)
    small = [tensor[:, :, :5, :3].detach().clone().requires_grad_() for tensor in (q, k, v)]
    assert torch.autograd.gradcheck(again, small)
    # And it is what the decoder uses where it serves.
    block = Attention(24, 3, dropout=0.3)
    assert serves(q, 0.3)
    assert not serves(q, 0.0)
    assert not serves(q.bfloat16(), 0.3)
    assert "DropoutAttention" in str(_ancestors(block(torch.randn(1, 7, 24))))
    assert "DropoutAttention" not in str(_ancestors(block.eval()(torch.randn(1, 7, 24))))


def _ancestors(tensor: torch.Tensor) -> set[str]:
    found, todo = set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return {node.name() for node in found}


# ---------------------------------------------------------------------- reconstruction


def test_reconstruct_returns_what_is_missing(model):
    data = volumes()
    three = {name: volume for name, volume in data.items() if name != "t1"}
    found = model.reconstruct(three)
    assert list(found) == ["t1"]
    hidden = torch.zeros(2, 4, 64)
    hidden[:, 0] = 1
    expected = model.predict(model.backbone.patches(data), masks_from(hidden)).unflatten(1, (4, -1))[:, 0]
    torch.testing.assert_close(patchify_3d(found["t1"], 4), expected)
    assert list(model.reconstruct({"t1ce": data["t1ce"], "t2": data["t2"]})) == ["t1", "flair"]
    with pytest.raises(ZooError, match="All four sequences are given"):
        model.reconstruct(data)
    with pytest.raises(ZooError, match="one or more of t1"):
        model.reconstruct({"pet": data["t1"]})
    with pytest.raises(ZooError, match=r"t1 has shape \(2, 1, 8"):
        model.reconstruct({"t1": volumes(2, 8)["t1"]})


def test_visible_patches_come_back_only_on_request(model):
    data = volumes(1)
    masked = {"t2": (torch.arange(64) < 40)[None]}
    plain = patchify_3d(model.reconstruct(data, masked=masked)["t2"], 4)
    pasted = patchify_3d(model.reconstruct(data, masked=masked, paste_visible=True)["t2"], 4)
    truth = patchify_3d(data["t2"], 4)
    torch.testing.assert_close(pasted[:, 40:], truth[:, 40:])
    torch.testing.assert_close(pasted[:, :40], plain[:, :40])
    assert not torch.allclose(plain[:, 40:], truth[:, 40:])


def test_without_cross_modal_tokens_a_sequence_says_nothing_of_another():
    torch.manual_seed(0)
    twin = BMMAE(**TINY, cross_modal=False).eval()
    data = volumes()
    masks = twin.draw_masks(2)
    before = twin.predict(twin.backbone.patches(data), masks).unflatten(1, (4, -1))
    changed = data | {"t1": data["t1"] + 1}
    after = twin.predict(twin.backbone.patches(changed), masks).unflatten(1, (4, -1))
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
    assert not torch.allclose(after[:, 0], before[:, 0])
    full = BMMAE(**TINY).eval()
    moved = full.predict(full.backbone.patches(changed), masks).unflatten(1, (4, -1))
    assert not torch.allclose(
        moved[:, 1:], full.predict(full.backbone.patches(data), masks).unflatten(1, (4, -1))[:, 1:]
    )


def test_it_learns_what_sequences_say_of_each_other():
    """Four sequences that are one field times four numbers: a withheld one is known from the rest alone."""
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> dict[str, torch.Tensor]:
        field = torch.randn(size, 1, 1, 1, 1, generator=generator).expand(-1, -1, 4, 4, 4)
        return {name: factor * field for name, factor in zip(MODALITIES, (1.0, -1.0, 0.7, 1.3), strict=True)}

    held_out = batch(64)
    errors = []
    for cross_modal in (True, False):
        torch.manual_seed(0)
        arguments = TINY | dict(image_size=4, decoder_embed_dim=24, depth=2, mask_ratio=0.5)
        model = BMMAE(**arguments, cross_modal=cross_modal)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(250):
            data = batch(64)
            optimizer.zero_grad()
            model.restoration(data, model.draw_masks(64)).loss.backward()
            optimizer.step()
        given = {name: volume for name, volume in held_out.items() if name != "t1"}
        found = model.eval().reconstruct(given)["t1"]
        errors.append(float((found - held_out["t1"]).square().mean()))
    assert errors[0] < 0.2  # predicting the mean gives 1
    assert errors[1] > 0.7


# ---------------------------------------------------------------------- schedule, extras, catalogue


def test_learning_rate():
    factor = [capped_cosine_factor(e, warmup_epochs=50, cosine_epochs=1500) for e in range(1000)]
    assert 1e-4 * factor[0] == pytest.approx(2e-6, rel=1e-3)
    assert 1e-4 * factor[49] == pytest.approx(9.97e-5, rel=1e-3)
    assert 1e-4 * factor[999] == pytest.approx(2.5e-5, rel=1e-2)


def test_missing_libraries_name_the_extra(monkeypatch):
    from zoo import extras

    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    model = BMMAE(**TINY)
    for use in (lambda: model.preprocess({"t1": __file__}), lambda: model.make_segmenter(["t1"], 3)):
        with pytest.raises(ZooError, match=r"\[medical\]"):
            use()


def test_catalogue_models_build_without_weights():
    for name in zoo.list_models("bm-mae-vitb*"):
        manifest = zoo.info(name)
        assert manifest.parameters == 78_280_576
        assert "NC" in (manifest.license or "")
        with torch.device("meta"):
            assert count_parameters(zoo.load(name, pretrained=False)) == manifest.parameters

"""BM-MAE against what the official classes recorded: sampler, forward, losses, withheld sequences, branches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.nn.patches3d import patchify_3d
from zoo.papers.bm_mae import BMMAE, weights
from zoo.papers.bm_mae.downstream import Classifier, Segmenter
from zoo.papers.bm_mae.losses import modality_losses, standardise_patches
from zoo.papers.bm_mae.masking import make_masks, masks_from, num_visible, redraw_shares
from zoo.papers.bm_mae.network import MODALITIES, MultimodalViT

pytestmark = pytest.mark.golden
TOLERANCE = dict(rtol=0, atol=1e-5)


def cases(folder: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The recorded cases that hold `key`; there must be one."""
    found = [(path.name, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in found if key in case]
    if not found:
        pytest.skip(f"no case with {key} in {folder}")
    yield from found


def replay(draws: list[torch.Tensor]):
    """The recorded Dirichlet draws in turn, as `redraw_shares` asks for them."""
    remaining = iter(draws)

    def draw(rows: int) -> torch.Tensor:
        given = next(remaining)
        assert len(given) == rows, "another number of rows was rejected than in the official run"
        return given.clone()

    return draw


def pretraining(case: dict[str, Any]) -> BMMAE:
    c = case["config"]
    model = BMMAE(
        image_size=c["img_size"], patch_size=c["patch_size"], embed_dim=c["hidden_size"], depth=c["num_layers"],
        num_heads=c["num_heads"], mlp_dim=c["mlp_dim"], decoder_embed_dim=c["decoder_hidden_size"],
        decoder_depth=c["decoder_num_layers"], decoder_num_heads=c["decoder_num_heads"],
        decoder_mlp_dim=c["decoder_mlp_dim"], mask_ratio=c["masking_ratio"],
    )  # fmt: skip
    model.load_weights(case["state_dict"], "the golden case")
    assert weights.to_official(model.state_dict()).keys() == case["state_dict"].keys()
    return model.eval()


def stack(per_modality: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([per_modality[name] for name in MODALITIES], dim=1)


def test_sampler(golden_dir):
    for name, recorded in cases(golden_dir("bm_mae"), "cases"):
        for index, case in enumerate(recorded["cases"]):
            where = f"{name}, case {index}"
            tokens, modalities, batch = (case[key] for key in ("tokens_per_modality", "num_modalities", "batch"))
            visible = num_visible(tokens, modalities, case["masking_ratio"])
            assert visible == case["num_keep"], where
            shares = redraw_shares(batch, tokens / visible, replay(case["dirichlet_draws"]))
            noise = case["token_noise"]
            noise = torch.stack(list(noise.values()) if isinstance(noise, dict) else list(noise), dim=1)
            masks = make_masks(shares, noise, case["final_noise"], visible)
            recorded_masks = torch.stack(list(case["masks"].values()), dim=1).bool()
            assert torch.equal(masks.masked, recorded_masks), where
            assert torch.equal(masks.visible, case["ids_keep"].long()), where
            assert torch.equal(masks.restore, case["ids_restore"].long()), where


def test_pretraining_sampler_draws_give_the_recorded_masks(golden_dir):
    for name, case in cases(golden_dir("bm_mae"), "withheld_masks"):
        recorded = stack(case["masks"])
        batch, modalities, tokens = recorded.shape
        visible = num_visible(tokens, modalities, case["config"]["masking_ratio"])
        draws = case["dirichlet_draws"]
        shares = redraw_shares(batch, tokens / visible, replay(list(draws)))
        masks = make_masks(shares, stack(case["token_noise"]), case["final_noise"], visible)
        assert torch.equal(masks.masked, recorded.bool()), name


def test_pretraining_forward_and_losses(golden_dir):
    for name, case in cases(golden_dir("bm_mae"), "withheld_masks"):
        model = pretraining(case)
        masks = masks_from(stack(case["masks"]))
        patches = model.backbone.patches(case["inputs"])
        whole = model.predict(patches, masks).unflatten(1, (4, -1))
        for index, modality in enumerate(MODALITIES):
            torch.testing.assert_close(
                whole[:, index], case["outputs"][modality], **TOLERANCE, msg=f"{name} {modality}"
            )
        # The order in which sequences come changes nothing.
        turned = dict(reversed(case["inputs"].items()))
        for norm, suffix in ((False, ""), (True, "_norm_pix")):
            model.hparams.norm_pix_loss = norm
            out = model.restoration(turned, masks)
            for index, modality in enumerate(MODALITIES):
                expected = case[f"loss_per_modality{suffix}"][modality]
                assert out.losses[index].item() == pytest.approx(expected, rel=1e-5), (name, modality, suffix)
            assert out.loss.item() == pytest.approx(case[f"loss{suffix}"], rel=1e-5), (name, suffix)
        model.hparams.norm_pix_loss = False
        loss = model.restoration(case["inputs"], masks).loss
        assert loss.item() == pytest.approx(case["loss_user_mask"], rel=1e-5)
        loss.backward()
        gradients = weights.to_official({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
        for key, expected in case["grad_norms"].items():
            assert gradients[key].norm().item() == pytest.approx(expected, rel=1e-4), (name, key)


def test_the_device_path_embeds_the_same_tokens(golden_dir, monkeypatch):
    for name, case in cases(golden_dir("bm_mae"), "withheld_masks"):
        model = pretraining(case)
        masks = masks_from(stack(case["masks"]))
        patches = model.backbone.patches(case["inputs"])
        sparse = model.backbone.embed_visible(patches, masks)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.testing.assert_close(model.backbone.embed_visible(patches, masks), sparse, **TOLERANCE, msg=name)
        monkeypatch.undo()


def test_losses_from_recorded_outputs(golden_dir):
    for name, case in cases(golden_dir("bm_mae"), "withheld_masks"):
        p = case["config"]["patch_size"]
        masked = stack(case["masks"]).bool()
        target = stack({m: patchify_3d(v, p) for m, v in case["inputs"].items()})
        for suffix, wanted in (("", target), ("_norm_pix", standardise_patches(target))):
            error = (stack(case["outputs"]) - wanted).square().mean(-1)
            index = torch.arange(4)[:, None].expand(len(error), -1, error.shape[2])
            losses = modality_losses(error.flatten(1), index.flatten(1), masked.flatten(1), 4)
            assert losses.sum().item() == pytest.approx(case[f"loss{suffix}"], rel=1e-5), name


def test_withheld_sequences(golden_dir):
    for name, case in cases(golden_dir("bm_mae"), "withheld_masks"):
        model = pretraining(case)
        masks = case["withheld_masks"]
        absent = [modality for modality in MODALITIES if bool(masks[modality].all())]
        given = {m: v for m, v in case["inputs"].items() if m not in absent}
        volumes = model.reconstruct(given, masked={m: masks[m] for m in given}, sequences=absent)
        assert set(case["withheld_outputs"]) <= set(absent), name
        for modality, expected in case["withheld_outputs"].items():
            found = patchify_3d(volumes[modality], case["config"]["patch_size"])
            torch.testing.assert_close(found, expected, **TOLERANCE, msg=f"{name} {modality}")


def test_downstream(golden_dir):
    for name, case in cases(golden_dir("bm_mae"), "seg_hidden"):
        c, state = case["config"], case["state_dict"]
        arguments = dict(
            image_size=c["img_size"], patch_size=c["patch_size"], dim=c["hidden_size"], depth=c["num_layers"],
            num_heads=c["num_heads"], mlp_dim=c["mlp_dim"], modalities=case["modalities"],
        )  # fmt: skip
        inputs = {modality: volume.float() for modality, volume in case["inputs"].items()}
        encoder = MultimodalViT(**arguments)
        encoder.load_state_dict({key: value for key, value in state.items() if not key.startswith("output_layer")})
        model = Classifier(encoder, arguments, c["n_outputs"]).eval()
        head = {key: value for key, value in state.items() if key.startswith("output_layer")}
        model.output_layer.load_state_dict({key.removeprefix("output_layer."): value for key, value in head.items()})
        with torch.no_grad():
            torch.testing.assert_close(model(inputs), case["logits"], **TOLERANCE, msg=name)
            one = {"flair": inputs["flair"]}
            torch.testing.assert_close(model(one), case["logits_flair_only"], **TOLERANCE, msg=name)
            tokens = encoder.eval()(dict(reversed(inputs.items())))
            assert list(tokens.shape) == list(case["encoder_tokens_shape"]), name
            torch.testing.assert_close(tokens[:, :8], case["encoder_tokens_first8"], **TOLERANCE, msg=name)
            assert tokens.mean().item() == pytest.approx(case["encoder_tokens_mean"], abs=1e-6)
            assert tokens.abs().mean().item() == pytest.approx(case["encoder_tokens_absmean"], abs=1e-5)
            segmenter = Segmenter(encoder, arguments, 3).eval()
            final, hidden = segmenter.encoder.hidden_states(inputs)
            torch.testing.assert_close(final, case["seg_final"], **TOLERANCE, msg=name)
            torch.testing.assert_close(torch.stack(hidden), case["seg_hidden"], **TOLERANCE, msg=name)
            final, hidden = segmenter.encoder.hidden_states({"t1ce": inputs["t1ce"]})
            torch.testing.assert_close(final, case["seg_final_t1ce_only"], **TOLERANCE, msg=name)
            torch.testing.assert_close(hidden[-1], case["seg_hidden_t1ce_only_last"], **TOLERANCE, msg=name)
            assert segmenter(inputs).shape == (1, 3, *[c["img_size"]] * 3)

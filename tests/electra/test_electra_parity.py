"""ELECTRA against what the official implementation recorded: corruption, losses, gradients, optimiser, builder."""

from __future__ import annotations

import json

import pytest
import torch
from support_golden import Replay, golden_cases

from zoo.nn.text import additive_mask
from zoo.optim_text import BertAdam, decays, layer_scale, schedule_factor
from zoo.papers.electra import Electra, weights

pytestmark = pytest.mark.golden


def build(case) -> Electra:
    config, state = json.loads(case["config"]), case["state_dict"]
    overrides = config["model_hparam_overrides"]
    hidden = overrides["hidden_size"]
    tied = config["untied_generator"]
    model = Electra(
        tokenizer=None,
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=overrides["num_hidden_layers"],
        num_heads=overrides["num_attention_heads"],
        intermediate_size=state["electra/encoder/layer_0/intermediate/dense/bias"].shape[0],
        embedding_size=config["embedding_size"] or hidden,
        max_positions=state["electra/embeddings/position_embeddings"].shape[0],
        objective="electric" if config["electric_objective"] else "rtd" if config["electra_objective"] else "mlm",
        generator="uniform" if config["uniform_generator"] else "two_tower" if config["two_tower_generator"] else "mlm",
        generator_size=config["generator_hidden_size"],
        generator_layers=config["generator_layers"],
        sharing="none" if config["untied_generator_embeddings"] else "embeddings" if tied else "all",
        mask_prob=config["mask_prob"],
        official_masking=True,
        gen_weight=config["gen_weight"],
        disc_weight=config["disc_weight"],
        temperature=config["temperature"],
        disallow_correct=config["disallow_correct"],
    ).eval()
    model.load_weights(state)
    return model


def test_pretraining_matches_the_official_model(golden_dir):
    for name, case in golden_cases(golden_dir("electra"), "mlm_logits", "outputs"):
        model, want = build(case), case["outputs"]
        back = model.official_state_dict()
        assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in case["state_dict"].items()}
        assert all(torch.equal(back[key], value) for key, value in case["state_dict"].items()), name
        inputs, draws = case["inputs"], case["draws"]
        batch = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["input_mask"],
            "token_type_ids": inputs["segment_ids"],
        }
        out = model.pretraining_task(
            batch,
            positions=draws["categorical_positions"],
            mask_uniform=draws["uniform_mask85"],
            gumbel_uniform=draws["uniform_gumbel"],
        )
        used = want["masked_lm_weights"].bool()
        assert torch.equal(out.masked.input_ids, want["masked_input_ids"]), name
        assert torch.equal(out.masked.weights, want["masked_lm_weights"]), name
        assert torch.equal(out.masked.positions, want["masked_lm_positions"]), name
        assert torch.equal(out.masked.ids, want["masked_lm_ids"]), name
        torch.testing.assert_close(out.mlm_logits[used], want["mlm_logits"][used], rtol=1e-5, atol=2e-5, msg=name)
        assert torch.equal(out.sampled[used], want["sampled_ids"][used]), name
        assert abs(out.mlm_loss.item() - want["mlm_loss"].item()) < 1e-5, name
        assert abs(out.loss.item() - want["total_loss"].item()) < 5e-5, name  # 50 times a loss that holds to 1e-6
        if out.disc_logits is not None:
            real = batch["attention_mask"].bool()
            assert torch.equal(out.disc_input_ids, want["disc_input_ids"]), name
            assert torch.equal(out.disc_labels, want["disc_labels"]), name
            theirs = want["disc_logits"] if "disc_logits" in want else want["disc_probs"].logit()
            torch.testing.assert_close(out.disc_logits[real], theirs[real], rtol=1e-5, atol=2e-5, msg=f"{name}: logits")
            if "cloze_logits" in want:
                cloze = model.cloze_logits(
                    batch["input_ids"], batch["token_type_ids"], additive_mask(batch["attention_mask"])
                )
                torch.testing.assert_close(cloze[real], want["cloze_logits"][real], rtol=1e-5, atol=2e-5, msg=name)
            generator = want.get("cloze_loss", want["mlm_loss"])
            assert abs(out.gen_loss.item() - generator.item()) < 1e-5, name
            disc = (want["total_loss"] - model.hparams.gen_weight * generator) / model.disc_weight
            assert abs(out.disc_loss.item() - disc.item()) < 1e-5, name
        if "grads" in case:
            out.loss.backward()
            grads = weights.to_tensorflow({key: p.grad for key, p in model.named_parameters() if p.grad is not None})
            for key, expected in case["grads"].items():
                limit = 1e-4 * max(expected.abs().max().item(), 1e-2)
                assert (grads[key] - expected).abs().max().item() < limit, (name, key)
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            assert abs(norm.item() / case["global_grad_norm"] - 1) < 1e-4, name


def test_optimiser_and_schedule_step_for_step(golden_dir):
    for name, case in golden_cases(golden_dir("electra"), "raw_grads"):
        decay = case["layerwise_lr_decay"]
        warmup = max(case["num_train_steps"] * case["warmup_proportion"], case["warmup_steps"])
        params, groups = {}, []
        for key, value in case["init"].items():
            ours = next(iter(weights.from_tensorflow({key: value})))
            params[key] = torch.nn.Parameter(value.clone())
            scale = layer_scale(ours, case["n_transformer_layers"], decay, official=True) if decay > 0 else 1.0
            for pattern, multiplier in (case["layer_lr_multiplier"] or {}).items():
                if decay > 0 and pattern in key + "/":
                    assert scale == pytest.approx(multiplier), (name, key)
            wd = case["weight_decay_rate"] if decays(ours) else 0.0
            groups.append({"params": [params[key]], "weight_decay": wd, "scale": scale})
        optimizer = BertAdam(groups, lr=1.0, betas=tuple(case["betas"]), eps=case["eps"])
        for step, expected_lr in enumerate(case["lr_at_step"].tolist()):
            lr = case["learning_rate"] * schedule_factor(step, case["num_train_steps"], warmup, "electra")
            assert lr == pytest.approx(expected_lr, abs=1e-8), (name, step)
            for key, parameter in params.items():
                parameter.grad = case["raw_grads"][key][step].clone()
            torch.nn.utils.clip_grad_norm_(params.values(), case["clip_norm"])
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            optimizer.step()
            for key, parameter in params.items():
                torch.testing.assert_close(
                    parameter.detach(), case["params_after_step"][key][step], rtol=0, atol=1e-6, msg=f"{name} {key}"
                )


def test_example_builder_token_for_token(golden_dir):
    import numpy as np

    from datamodules.text_packing import PaddedPairs, electra_examples
    from zoo.nn.text import SpecialIds

    for name, case in golden_cases(golden_dir("electra"), "examples"):
        draws = Replay(case["draws"])
        pairs = list(electra_examples([*case["lines"], []], case["max_length"], draws))
        assert not draws.draws, name
        data = PaddedPairs(pairs, case["max_length"], SpecialIds())
        assert len(data) == len(case["examples"]), name
        for mine, theirs in zip((data[i] for i in range(len(data))), case["examples"], strict=True):
            assert np.array_equal(mine["input_ids"], theirs["input_ids"]), name
            assert np.array_equal(mine["attention_mask"], theirs["input_mask"]), name
            assert np.array_equal(mine["token_type_ids"], theirs["segment_ids"]), name

"""Compact BERTs against what the official implementation recorded: network, losses, optimiser, instances."""

from __future__ import annotations

import json

import pytest
import torch
from support_golden import Replay, golden_cases

from datamodules.text_packing import bert_instances
from zoo.optim_text import BertAdam, decays, schedule_factor
from zoo.papers.well_read_students import CompactBert, weights

pytestmark = pytest.mark.golden


def test_network_and_losses(golden_dir):
    for name, case in golden_cases(golden_dir("well_read_students"), "state_dict"):
        config, inputs, want = json.loads(case["config"]), case["inputs"], case["outputs"]
        model = CompactBert(
            tokenizer=None,
            num_layers=config["layers"],
            hidden_size=config["hidden"],
            num_heads=config["heads"],
            vocab_size=config["vocab"],
            max_positions=config["max_position"],
            act="gelu_tanh",
        ).eval()
        model.load_weights(case["state_dict"])
        back = model.official_state_dict()
        assert set(back) == set(case["state_dict"])
        assert all(torch.equal(back[key], value) for key, value in case["state_dict"].items()), name
        batch = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["input_mask"],
            "token_type_ids": inputs["segment_ids"],
            "next_sentence_label": inputs["next_sentence_labels"][:, 0],
            "masked_lm_positions": inputs["masked_lm_positions"],
            "masked_lm_ids": inputs["masked_lm_ids"],
            "masked_lm_weights": inputs["masked_lm_weights"],
        }
        tolerance = dict(rtol=1e-5, atol=2e-5)
        real = batch["attention_mask"].bool()
        tokens = model.forward_tokens(batch)
        torch.testing.assert_close(tokens[real], want["sequence_output"][real], **tolerance, msg=f"{name}: tokens")
        torch.testing.assert_close(model.pooled(batch), want["pooled_output"], **tolerance, msg=f"{name}: pooled")
        out = model.pretraining_task(batch)
        used = inputs["masked_lm_weights"].bool()
        mine = out.mlm_logits.log_softmax(-1)[used]
        theirs = want["mlm_log_probs"].view(*used.shape, -1)[used]
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=3e-5, msg=f"{name}: MLM")
        torch.testing.assert_close(out.nsp_logits.log_softmax(-1), want["nsp_log_probs"], **tolerance)
        for key in ("mlm_loss", "nsp_loss"):
            assert abs(getattr(out, key).item() - want[key].item()) < 1e-5, (name, key)
        assert abs(out.loss.item() - want["total_loss"].item()) < 2e-5, name


def test_optimiser_and_schedule_step_for_step(golden_dir):
    for name, case in golden_cases(golden_dir("well_read_students"), "raw_grads"):
        params, groups = {}, []
        for key, value in case["init"].items():
            ours = next(iter(weights.from_tensorflow({key: value})))
            params[key] = torch.nn.Parameter(value.clone())
            decay = case["weight_decay_rate"] if decays(ours) else 0.0
            groups.append({"params": [params[key]], "weight_decay": decay})
        optimizer = BertAdam(groups, lr=1.0, betas=tuple(case["betas"]), eps=case["eps"])
        for step, expected in enumerate(case["lr_at_step"].tolist()):
            lr = case["init_lr"] * schedule_factor(step, case["num_train_steps"], case["num_warmup_steps"], "bert")
            assert lr == pytest.approx(expected, abs=1e-9), (name, step)
            for key, parameter in params.items():
                parameter.grad = case["raw_grads"][key][step].clone()
            torch.nn.utils.clip_grad_norm_(params.values(), case["clip_norm"])
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            for key, parameter in params.items():
                torch.testing.assert_close(
                    parameter.detach(), case["params_after_step"][key][step], rtol=0, atol=1e-6, msg=f"{name} {key}"
                )


def test_instances_token_for_token(golden_dir):
    for name, case in golden_cases(golden_dir("well_read_students"), "per_document"):
        for recorded in case["per_document"]:
            draws = Replay(recorded["draws"])
            made = bert_instances(
                case["all_documents"],
                recorded["document_index"],
                max_length=case["max_seq_length"],
                short_prob=case["short_seq_prob"],
                mask_prob=case["masked_lm_prob"],
                max_predictions=case["max_predictions_per_seq"],
                vocabulary=case["vocab_words"],
                whole_words=case["do_whole_word_mask"],
                draws=draws,
            )
            assert [vars(instance) for instance in made] == recorded["instances"], name
            assert not draws.draws, name

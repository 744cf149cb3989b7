"""The official fine-tuning heads: logits, losses, and the beam of span prediction."""

from __future__ import annotations

import json

import pytest
import torch

from zoo.papers.electra import Electra
from zoo.tasks.text_classification import TextClassification
from zoo.tasks.text_heads import SpanHead, official_head, span_loss

pytestmark = pytest.mark.golden


def cases(folder, kind):
    found = [(path.stem, torch.load(path, weights_only=True)) for path in sorted(folder.glob("*.pt"))]
    found = [(name, case) for name, case in found if kind(case)]
    if not found:
        pytest.skip(f"no such case in {folder}")
    return found


def network(case):
    config, state = json.loads(case["config"]), case["state_dict"]
    return {
        "vocab_size": config["vocab"],
        "hidden_size": config["hidden"],
        "num_layers": config["layers"],
        "num_heads": config["heads"],
        "intermediate_size": state["electra/encoder/layer_0/intermediate/dense/bias"].shape[0],
        "embedding_size": config["embedding"],
        "max_positions": state["electra/embeddings/position_embeddings"].shape[0],
        "generator": "none",
    }


def encoder_state(case):
    ours = Electra.convert_state_dict(case["state_dict"])
    return {k.removeprefix("backbone."): v for k, v in ours.items() if k.startswith("backbone.")}


def batch_of(case):
    inputs = case["inputs"]
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["input_mask"],
        "token_type_ids": inputs["segment_ids"],
    }


def test_classification_and_regression(golden_dir):
    wanted = lambda c: "task" in c and c["task"] != "squad"  # noqa: E731
    for name, case in cases(golden_dir("electra"), wanted):
        regression = "targets" in case["outputs"]
        task = case["task"]
        outputs = case["state_dict"][f"task_specific/{task}/dense/bias"].shape[0]
        backbone = {"class_path": "zoo.papers.electra.Electra", "init_args": network(case)}
        model = TextClassification(backbone, num_classes=outputs, regression=regression).eval()
        model.backbone.load_state_dict(encoder_state(case))
        model.head.load_state_dict(official_head(case["state_dict"], task, "single"))
        logits = model.classify(batch_of(case))
        if regression:
            labels = case["inputs"][f"{task}_targets"]
            torch.testing.assert_close(logits[:, 0], case["outputs"]["predictions"], rtol=0, atol=1e-5, msg=name)
        else:
            labels = case["inputs"][f"{task}_label_ids"]
            torch.testing.assert_close(logits, case["outputs"]["logits"], rtol=0, atol=1e-5, msg=name)
        losses = model.losses(logits, labels)
        torch.testing.assert_close(losses, case["outputs"]["loss"], rtol=0, atol=1e-5, msg=name)
        assert abs(losses.sum() - case["outputs"]["total_loss_summed_over_batch"]) < 1e-5, name


def test_answer_spans(golden_dir):
    for name, case in cases(golden_dir("electra"), lambda c: c.get("task") == "squad"):
        model = Electra(**network(case)).eval()
        model.backbone.load_state_dict(encoder_state(case))
        head = SpanHead(model.hparams.hidden_size)
        head.load_state_dict(official_head(case["state_dict"], "squad", "span"))
        batch, want, inputs = batch_of(case), case["outputs"], case["inputs"]
        tokens = model.forward_tokens(batch)
        training = case["is_training_graph"]
        starts = inputs["squad_start_positions"]
        beam = json.loads(case["config"])["beam_size"]
        out = head(tokens, batch["attention_mask"], batch["token_type_ids"], starts if training else None, beam)
        allowed = want["start_logits"] > -500
        torch.testing.assert_close(out.start_logits[allowed], want["start_logits"][allowed], rtol=0, atol=2e-5)
        torch.testing.assert_close(out.answerable_logit, want["answerable_logit"], rtol=0, atol=2e-5, msg=name)
        if training:
            torch.testing.assert_close(out.end_logits[allowed], want["end_logits"][allowed], rtol=0, atol=2e-5)
            losses = span_loss(out, starts, inputs["squad_end_positions"], inputs["squad_is_impossible"])
            torch.testing.assert_close(losses, want["loss"], rtol=0, atol=2e-5, msg=name)
        else:
            assert torch.equal(out.start_index, want["start_top_index"]), name
            assert torch.equal(out.end_index, want["end_top_index"]), name
            for mine, theirs in (("start", out.start_log_probs), ("end", out.end_log_probs)):
                torch.testing.assert_close(theirs, want[f"{mine}_top_log_probs"], rtol=0, atol=1e-4, msg=name)

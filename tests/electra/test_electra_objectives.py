"""The ablations of section 3.4, two-stage training and Electric: hand-computed numbers and what each may see."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zoo.errors import ZooError
from zoo.nn.text import SpecialIds
from zoo.papers.electra import Electra
from zoo.papers.electra.losses import copy_nll, electric_logits, replaced_token_loss

TINY = dict(vocab_size=150, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, embedding_size=16,
            max_positions=32, warmup_steps=2, tokenizer=None, dropout=0.0)  # fmt: skip
MODES = [
    {"objective": "rtd_masked"},
    {"objective": "replace_mlm"},
    {"objective": "all_tokens_mlm"},
    {"objective": "electric", "generator": "two_tower"},
    {"objective": "electric", "generator": "two_tower", "sharing": "none", "official_masking": True},
    {"objective": "rtd", "generator": "two_tower"},
]


def batch_of(lengths, width=24):
    torch.manual_seed(0)
    ids = torch.randint(104, 150, (len(lengths), width))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids[:, 0] = SpecialIds().cls
    for row, length in enumerate(lengths):
        ids[row, length - 1] = SpecialIds().sep
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_learns_and_converts(mode):
    torch.manual_seed(0)
    model = Electra(**TINY, **mode)
    out = model.pretraining_task(batch_of([24, 15, 6]))
    out.loss.backward()
    assert out.loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    back = Electra.convert_state_dict(model.official_state_dict())
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_loss_on_masked_places_only():
    model, batch = Electra(**TINY, objective="rtd_masked"), batch_of([24, 15])
    out = model.pretraining_task(batch)
    places = torch.zeros_like(batch["input_ids"]).scatter(1, out.masked.positions, out.masked.weights.long())
    wanted = F.binary_cross_entropy_with_logits(out.disc_logits[places.bool()], out.disc_labels[places.bool()].float())
    torch.testing.assert_close(out.disc_loss, wanted, rtol=1e-5, atol=1e-6)
    assert out.disc_loss != replaced_token_loss(out.disc_logits, out.disc_labels, batch["attention_mask"])


def test_replace_mlm_reads_samples_and_predicts_what_stood_there():
    model, batch = Electra(**TINY, objective="replace_mlm"), batch_of([24, 15])
    out = model.pretraining_task(batch)
    assert not (out.disc_input_ids == SpecialIds().mask).any()
    used = out.masked.weights.bool()
    wanted = F.cross_entropy(out.token_logits[used], out.masked.ids[used])
    torch.testing.assert_close(out.disc_loss, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.loss, out.mlm_loss + out.disc_loss)  # not times 50


def test_copy_mechanism():
    logits = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]])
    copy = torch.tensor([[0.3, -1.2]])
    p, d = logits.softmax(-1), copy.sigmoid()
    nll = copy_nll(logits, copy, torch.tensor([[1, 1]]), torch.tensor([[1, 2]]))
    wanted = -torch.stack([d[0, 0] + (1 - d[0, 0]) * p[0, 0, 1], (1 - d[0, 1]) * p[0, 1, 2]]).log()
    torch.testing.assert_close(nll[0], wanted)
    model, batch = Electra(**TINY, objective="all_tokens_mlm"), batch_of([24, 15])
    out = model.pretraining_task(batch)
    assert out.token_logits.shape == (2, 24, 150)
    with torch.no_grad():  # sure to copy: only the replaced tokens cost anything
        model.token_predictions.copy.weight.zero_()
        model.token_predictions.copy.bias.fill_(20.0)
    torch.manual_seed(0)
    out = model.pretraining_task(batch)
    cost = out.disc_loss * batch["attention_mask"].sum()
    assert cost / (out.disc_input_ids != batch["input_ids"]).sum() > 20


def test_electric_logits_and_labels():
    scores, cloze = torch.tensor([[0.5, -1.0]]), torch.tensor([[[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]]], requires_grad=True)
    got = electric_logits(scores, cloze, torch.tensor([[2, 1]]), 0.15)
    log_q = torch.stack([cloze.log_softmax(-1)[0, 0, 2], cloze.log_softmax(-1)[0, 1, 1]])
    torch.testing.assert_close(got[0], (scores[0] + log_q + torch.tensor(0.15 / 0.85).log()).detach())
    assert not got.requires_grad
    model, batch = Electra(**TINY, objective="electric", generator="two_tower"), batch_of([24, 15])
    out = model.pretraining_task(batch)
    assert torch.equal(out.disc_labels.sum(1), out.masked.weights.sum(1).long())  # also samples that hit the original
    assert model.pseudo_log_likelihood(batch).shape == (2,)
    with pytest.raises(ZooError, match="electric"):
        Electra(**TINY).pseudo_log_likelihood(batch)


def test_towers_do_not_see_the_token_itself():
    torch.manual_seed(0)
    model = Electra(**TINY, objective="electric", generator="two_tower", init_std=0.3).eval()
    batch = batch_of([24, 24])
    changed = batch["input_ids"].clone()
    changed[:, 7] = 120
    mask = (1.0 - batch["attention_mask"][:, None, None]) * -1e4
    before, after = (model.cloze_logits(ids, None, mask) for ids in (batch["input_ids"], changed))
    same = (before - after).abs().amax(dim=(0, 2)) < 1e-5
    assert same[7]
    assert not same[1:7].any()  # from the right
    assert not same[8:23].any()  # from the left


def test_second_stage_starts_from_the_first(tmp_path):
    from types import SimpleNamespace

    from lightning import Trainer

    torch.manual_seed(0)
    first = Electra(**TINY, objective="mlm")
    path = tmp_path / "first.ckpt"
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(first)
    trainer.save_checkpoint(path)

    def second(**change):
        model = Electra(**{**TINY, **change}, generator="frozen", init_from=str(path))
        model.trainer = SimpleNamespace(datamodule=None, ckpt_path=None)
        return model

    model = second()
    model.setup("fit")
    for name, value in first.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)
        assert torch.equal(model.generator.state_dict()[name], value)
    batch = batch_of([24, 15])
    torch.manual_seed(1)
    out = model.pretraining_task(batch)
    torch.manual_seed(1)
    torch.testing.assert_close(out.mlm_loss, first.pretraining_task(batch).mlm_loss)
    out.loss.backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {name for name, _ in model.named_parameters() if not name.startswith("generator")}
    with pytest.raises(ZooError, match="another size"):
        second(num_layers=2).setup("fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"objective": "electric"}, "two towers"), ({"generator": "two_tower", "sharing": "all"}, "Two towers"),
     ({"init_from": "x.ckpt"}, "frozen"), ({"objective": "mlm", "generator": "two_tower"}, "leave generator")],
)  # fmt: skip
def test_modes_that_do_not_go_together(change, message):
    with pytest.raises(ZooError, match=message):
        Electra(**{**TINY, **change})

"""ELECTRA's rules as properties: which tokens are chosen, sampled and labelled, what is shared, what is refused."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import ZooError
from zoo.nn.text import SpecialIds, pack_tokenizer
from zoo.papers.electra import Electra
from zoo.papers.electra.corruption import (
    draw_positions_with_replacement,
    mask_tokens,
    max_predictions,
    num_to_predict,
    replace_tokens,
    sample,
)
from zoo.papers.electra.losses import detection_scores

SPECIAL = SpecialIds()
TINY = dict(vocab_size=150, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=64, embedding_size=16,
            max_positions=32, warmup_steps=2)  # fmt: skip


def batch_of(lengths, width=32):
    ids = torch.randint(104, 150, (len(lengths), width))
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    ids[:, 0] = SPECIAL.cls
    for row, length in enumerate(lengths):
        if length > 1:
            ids[row, length - 1] = SPECIAL.sep
    return ids * mask, mask


@pytest.mark.parametrize("official", [False, True])
def test_masking_rules(official):
    torch.manual_seed(0)
    ids, mask = batch_of([0, 1, 2, 3, 4, 10, 20, 31, 32, 32])
    for _ in range(20):
        out = mask_tokens(ids, mask, SPECIAL, 0.25, official=official)
        k = num_to_predict(mask, 0.25, max_predictions(32, 0.25))
        used = out.weights.bool()
        assert not used[:3].any()  # nothing there but special tokens
        assert torch.equal(used[5:].sum(1), k[5:])
        chosen = ids.gather(1, out.positions)[used]
        assert ((chosen >= 104) & (chosen < 150)).all()
        assert torch.equal(out.ids[used], chosen)
        assert (out.positions[~used] == 0).all()
        changed = out.input_ids != ids
        assert (out.input_ids[changed] == SPECIAL.mask).all()
        if not official:  # all of the chosen, each once
            assert torch.equal(changed.sum(1), used.sum(1))


def test_slots_and_rounding():
    assert [max_predictions(n, p) for n, p in ((128, 0.15), (512, 0.15), (512, 0.25), (8, 0.01))] == [19, 79, 130, 1]
    lengths = torch.tensor([[1] * n + [0] * (40 - n) for n in (3, 10, 30, 40)])
    assert num_to_predict(lengths, 0.15, 5).tolist() == [1, 2, 4, 5]  # 1.5 and 4.5 round to even, 6 is cut to 5


def test_official_draws_repeat_places_as_often_as_expected():
    torch.manual_seed(0)
    allowed = torch.zeros(4000, 40, dtype=torch.bool)
    allowed[:, 5:25] = True
    drawn = draw_positions_with_replacement(allowed, 6)
    assert allowed.gather(1, drawn).all()
    distinct = torch.tensor([len(set(row.tolist())) for row in drawn]).float().mean()
    assert distinct == pytest.approx(20 * (1 - (1 - 1 / 20) ** 6), abs=0.05)


def test_samples_follow_the_softmax_also_under_autocast():
    scipy_stats = pytest.importorskip("scipy.stats")
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 30) * 2
    for temperature in (1.0, 0.7):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            drawn = sample(logits.expand(1, 40000, -1), temperature=temperature)
        counts = drawn.flatten().bincount(minlength=30)
        expected = (logits / temperature).softmax(-1).flatten().double()
        expected = expected / expected.sum() * 40000
        keep = expected > 5
        observed, wanted = counts[keep].double(), expected[keep]
        p = scipy_stats.chisquare(observed.numpy(), (wanted * observed.sum() / wanted.sum()).numpy()).pvalue
        assert p > 1e-3
    forbidden = torch.full((1, 5000), int(logits.argmax()))
    assert (sample(logits.expand(1, 5000, -1), forbid=forbidden) != forbidden).all()


def test_a_sample_that_hits_the_original_is_original():
    torch.manual_seed(0)
    ids, mask = batch_of([32] * 8)
    masked = mask_tokens(ids, mask, SPECIAL, 0.15)
    same, written = replace_tokens(ids, masked, masked.ids)
    assert torch.equal(same, ids)
    other, again = replace_tokens(ids, masked, torch.full_like(masked.ids, 5))
    assert torch.equal(written, again)
    assert torch.equal(written.sum(1), masked.weights.sum(1).long())
    assert (other[written] == 5).all()
    assert (other[:, 0] == SPECIAL.cls).all()
    model = Electra(**TINY, objective="rtd")
    model.generator_predictions.bias.data[ids[0, 5]] = 100.0  # always the same sample
    ids[0] = ids[0, 5]
    assert not model.pretraining_task({"input_ids": ids}).disc_labels[0].any()


def test_places_drawn_twice():
    ids = torch.tensor([[101, 110, 111, 112, 102]])
    masked = mask_tokens(
        ids,
        torch.ones_like(ids),
        SPECIAL,
        0.4,
        official=True,
        positions=torch.tensor([[2, 2]]),
        uniform=torch.zeros(1, 2),
    )
    corrupted, _ = replace_tokens(ids, masked, torch.tensor([[24, 49]]), official=True)
    assert corrupted[0, 2] == 36  # (24 + 49) // 2: the released code's accident


def test_embeddings_are_one_storage_and_saved_once():
    model = Electra(**TINY)
    names = [key for key in model.state_dict() if "word_embeddings" in key]
    assert names == ["backbone.embeddings.word_embeddings.weight"]
    ids, mask = batch_of([32] * 4)
    torch.manual_seed(0)
    before = model.eval().pretraining_task({"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        model.backbone.embeddings.word_embeddings.weight.mul_(1.5)
    torch.manual_seed(0)
    after = model.pretraining_task({"input_ids": ids, "attention_mask": mask})
    assert not torch.allclose(before.mlm_logits, after.mlm_logits)
    assert not torch.allclose(before.disc_logits, after.disc_logits)


@pytest.mark.parametrize(
    "change",
    [{}, {"sharing": "none"}, {"sharing": "all"}, {"generator": "uniform"}, {"objective": "mlm"},
     {"official_masking": True, "disallow_correct": True}],
)  # fmt: skip
def test_every_mode_trains_every_parameter(change):
    torch.manual_seed(0)
    model = Electra(**TINY, **change)
    ids, mask = batch_of([32, 20, 9, 32])
    out = model.pretraining_task({"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})
    out.loss.backward()
    assert out.loss.isfinite()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    back = Electra.convert_state_dict(model.official_state_dict())
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in model.state_dict().items())


def test_start_values_give_the_expected_losses():
    torch.manual_seed(0)
    model = Electra(**TINY)
    ids, mask = batch_of([32] * 16)
    out = model.pretraining_task({"input_ids": ids, "attention_mask": mask})
    assert out.mlm_loss.item() == pytest.approx(torch.tensor(150.0).log().item(), abs=0.1)
    assert out.disc_loss.item() == pytest.approx(0.693, abs=0.05)
    share = out.disc_labels.float().mean().item()
    assert share == pytest.approx(out.masked.weights.sum().item() / ids.numel(), abs=0.01)


def test_share_of_replaced_tokens_falls_as_the_generator_learns():
    torch.manual_seed(0)
    model = Electra(**TINY).eval()
    ids, mask = batch_of([32] * 8)
    ids[:, 1:31] = 120  # one word everywhere, which the generator comes to know
    batch, logged, shares = {"input_ids": ids, "attention_mask": mask}, {}, []
    model.log_dict = lambda values, **_: logged.update(values)
    model.log = lambda *_, **__: None
    for known in (0.0, 5.0, 30.0):
        model.generator_predictions.bias.data[120] = known
        out = model.pretraining_task(batch)
        shares.append(out.disc_labels.float().sum().item() / out.masked.weights.sum().item())
        model.validation_step(batch, 0)
    assert shares[0] == pytest.approx(1 - 1 / 150, abs=0.06)
    assert shares[0] > shares[1] > shares[2] == 0
    assert logged["val/sampled_acc"] == logged["val/mlm_acc"] == 1
    assert {f"val/disc_{name}" for name in ("loss", "loss_prior", "acc", "precision", "recall")} <= set(logged)


def test_scores_of_detection_by_hand():
    logits = torch.tensor([[2.0, -1.0, 3.0, -2.0], [1.0, 1.0, -1.0, 9.0]])
    labels = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 1]])
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])  # the last token is padding
    found = detection_scores(logits, labels, real)
    assert [round(float(value), 4) for value in found.values()] == [0.5714, 0.5, 0.6667]


def test_transformers_computes_the_same_and_back():
    torch.manual_seed(0)
    model = Electra(**TINY).eval()
    ids, mask = batch_of([32, 20])
    theirs = model.to_transformers("discriminator")
    batch = {"input_ids": ids, "attention_mask": mask}
    logits = model.discriminator_predictions(model.forward_tokens(batch))
    real = mask.bool()
    torch.testing.assert_close(theirs(**batch).logits[real], logits[real], rtol=1e-5, atol=1e-5)
    alone = Electra(**TINY, generator="none", tokenizer=None)
    alone.load_weights(theirs.state_dict())
    torch.testing.assert_close(alone.eval().forward_tokens(batch)[real], model.forward_tokens(batch)[real])
    generator = model.to_transformers("generator")
    positions = torch.tensor([[1, 2, 3], [4, 5, 6]])
    from zoo.nn.text_mlm import Masked

    mine = model.generator_logits(
        Masked(ids, positions, ids[:, :3], torch.ones(2, 3)), None, (1.0 - mask[:, None, None]) * -1e4
    )
    wanted = generator(**batch).logits.gather(1, positions[..., None].expand(-1, -1, 150))
    torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ZooError, match="discriminator alone"):
        alone.pretraining_task(batch)


def test_tokenizer_travels_and_must_fit():
    from datamodules.text_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["the cat sat on the mat and the dog ran"] * 5, 300)
    size = tokenizer.get_vocab_size()
    model = Electra(**{**TINY, "vocab_size": size}, tokenizer=pack_tokenizer(tokenizer))
    assert model.special.mask == 4
    assert model(model.preprocess(["the cat", "the dog ran on the mat"])).shape == (2, 32)
    with pytest.raises(ZooError, match="do not belong together"):
        Electra(**{**TINY, "vocab_size": size - 1}, tokenizer=pack_tokenizer(tokenizer)).preprocess("the cat")
    with pytest.raises(ZooError, match="no tokenizer"):
        Electra(**TINY).preprocess("the cat")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_heads": 3}, "multiple of num_heads"), ({"mask_prob": 1.5}, "mask_prob"),
     ({"temperature": 0.0}, "temperature"),
     ({"objective": "mlm", "generator": "none"}, "leave generator"), ({"generator_size": 0.0}, "above 0"),
     ({"generator": "uniform", "sharing": "all"}, "no meaning")],
)  # fmt: skip
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ZooError, match=message):
        Electra(**{**TINY, **change})


@pytest.mark.parametrize("network", ["discriminator", "generator"])
def test_files_that_transformers_writes_load_by_name(tmp_path, network):
    import zoo
    from zoo.nn.text_mlm import Masked

    torch.manual_seed(0)
    model = Electra(**TINY, tokenizer=None).eval()
    model.to_transformers(network).save_pretrained(tmp_path)
    sizes = {key: TINY[key] for key in ("vocab_size", "num_layers", "embedding_size", "max_positions")}
    if network == "discriminator":
        sizes |= {key: TINY[key] for key in ("hidden_size", "num_heads", "intermediate_size")}
    else:
        sizes |= {"hidden_size": 8, "num_heads": 1, "intermediate_size": 32}
    back = zoo.load(f"electra-small-{network}", weights=tmp_path / "model.safetensors", tokenizer=None, **sizes)
    ids, _ = batch_of([32, 32])
    if network == "discriminator":
        torch.testing.assert_close(back.forward_tokens({"input_ids": ids}), model.forward_tokens({"input_ids": ids}))
    else:
        masked = Masked(ids, torch.tensor([[1, 2], [3, 4]]), ids[:, :2], torch.ones(2, 2))
        torch.testing.assert_close(
            back.generator_logits(masked, None, None), model.generator_logits(masked, None, None)
        )
    # The official names too, with the optimiser's slots that a TensorFlow checkpoint holds.
    state = model.official_state_dict()
    state |= {"global_step": torch.tensor(3), "electra/embeddings/word_embeddings/adam_m": torch.zeros(150, 16)}
    again = Electra(**TINY, tokenizer=None)
    again.load_weights(state)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_fine_tuning_in_memory_learns_what_the_words_give_away():
    from zoo.tasks.text_few_labels import finetune_text_accuracy

    torch.manual_seed(0)
    model = Electra(**TINY, tokenizer=None, generator="none")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids, mask = batch_of([16] * 80)
    labels = torch.arange(80) % 2
    ids[:, 3:9] = torch.where(labels[:, None] > 0, 120, 130)
    data = ({"input_ids": ids, "attention_mask": mask}, labels)
    state = torch.random.get_rng_state()
    found = [
        finetune_text_accuracy(model, data, data, pretrained=flag, steps=60, lr=3e-3, seed=0) for flag in (True, False)
    ]
    assert min(found) > 0.9
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():  # every token alike: the pre-trained weights are used, if nothing can be told apart
        model.backbone.embeddings.LayerNorm.weight.zero_()
        model.backbone.embeddings.LayerNorm.bias.zero_()
    assert finetune_text_accuracy(model, data, data, steps=2, lr=1e-6, seed=0) == 0.5


def test_sinusoidal_positions_make_neighbours_alike_everywhere():
    torch.manual_seed(0)
    table = Electra(**TINY, init_positions="sinusoidal", init_std=0.1).backbone.embeddings.position_embeddings.weight
    products = table @ table.t()
    for distance in (0, 1, 3):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-6)
    assert products[5, 5] > products[5, 6] > products[5, 8]
    assert table.std().item() == pytest.approx(0.1, abs=0.02)

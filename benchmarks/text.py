"""Speed of the text rooms: ELECTRA's training step beside a plain one, and the data pipeline beside a plain builder.

    python benchmarks/text.py step --batch 16 --length 128
    python benchmarks/text.py data

`step` times ELECTRA-Small: ours, and the straightforward way to write it with transformers - vocabulary logits of all
places, Gumbel noise for each word, eager attention - in turns within one process, from the same weights.

`data` times tokenising and building the official pairs, beside a word-by-word WordPiece in Python with the same builder
(leaner than the official scripts', which also look at every character). TOKENIZERS_PARALLELISM=false compares
single cores.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine, write_report
from torch.nn import functional as F

from datamodules.text import PYTHON_DOCS, Documents
from datamodules.text_base import corpus_tokenizer
from datamodules.text_packing import electra_examples
from zoo.papers.electra import Electra
from zoo.papers.electra.corruption import mask_tokens, replace_tokens


def plain_step(model: Electra, batch: dict[str, torch.Tensor], discriminator: Any, generator: Any) -> torch.Tensor:
    """ELECTRA as it is usually written with transformers' classes."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    masked = mask_tokens(ids, mask, model.special, model.hparams.mask_prob)
    logits = generator(input_ids=masked.input_ids, attention_mask=mask).logits
    index = masked.positions[..., None].expand(-1, -1, logits.shape[-1])
    chosen = logits.gather(1, index)
    loss = F.cross_entropy(chosen.flatten(0, 1), masked.ids.flatten())
    with torch.no_grad():
        noise = -torch.log(-torch.log(torch.rand_like(chosen) + 1e-9) + 1e-9)
        sampled = (chosen + noise).argmax(-1)
    corrupted, _ = replace_tokens(ids, masked, sampled)
    labels = (corrupted != ids).long()
    return loss + 50 * discriminator(input_ids=corrupted, attention_mask=mask, labels=labels).loss


def step(batch: int, length: int, rounds: int, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Electra(tokenizer=None, dropout=0.0, warmup_steps=1).to(device)
    discriminator, generator = (
        model.to_transformers("discriminator").train(),
        model.to_transformers("generator").train(),
    )
    for network in (discriminator, generator):
        network.to(device)
        network.set_attn_implementation("eager")
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.tie_weights()
    ids = torch.randint(1000, 30000, (batch, length), device=device)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def ours() -> None:
        model.zero_grad()
        model.pretraining_task(data).loss.backward()

    def plain() -> None:
        discriminator.zero_grad()
        generator.zero_grad()
        plain_step(model, data, discriminator, generator).backward()

    times = interleaved({"zoo": ours, "plain transformers": plain}, rounds, device)
    flops = 6 * batch * length * sum(p.numel() for n, p in model.named_parameters() if "encoder" in n)
    slots = int(0.155 * length)
    flops += 6 * batch * slots * model.hparams.vocab_size * model.hparams.embedding_size
    a = torch.randn(1024, 1024, device=device)
    peak = 2 * 1024**3 / min(interleaved({"matmul": lambda: a @ a}, 20, device)["matmul"])
    slow = times["plain transformers"]
    rows = [
        {
            "side": name,
            "ms/step": round(1e3 * statistics.median(values), 1),
            "tokens/s": round(batch * length / statistics.median(values)),
            "x plain": round(statistics.median(p / v for p, v in zip(slow, values, strict=True)), 2),
            "share of peak": round(flops / statistics.median(values) / peak, 3),
        }
        for name, values in times.items()
    ]
    return report("ELECTRA-Small step", {"batch": batch, "length": length, "rounds": rounds}, device, rows)


def python_wordpiece(vocab: dict[str, int]) -> Callable[[str], list[int]]:
    """Greedy longest-match WordPiece, one word at a time."""
    import re

    pattern = re.compile(r"\w+|[^\w\s]")

    def encode(line: str) -> list[int]:
        ids = []
        for word in pattern.findall(line.lower()):
            start = 0
            while start < len(word):
                end = len(word)
                while end > start and (piece := ("##" if start else "") + word[start:end]) not in vocab:
                    end -= 1
                if end == start:
                    ids.append(vocab["[UNK]"])
                    break
                ids.append(vocab[piece])
                start = end
        return ids

    return encode


def data(rounds: int) -> dict[str, Any]:
    documents = Documents(PYTHON_DOCS)
    tokenizer = corpus_tokenizer([documents], None, 8000)
    lines = [line for text in documents for line in text.split("\n")][:20000]
    encode = python_wordpiece(tokenizer.get_vocab())
    counts: dict[str, int] = {}

    def build(ids: list[list[int]], name: str) -> None:
        counts[name] = sum(map(len, ids))
        for _ in electra_examples([*ids, []], 128, random.Random(0)):
            pass

    def ours() -> None:
        build([e.ids for e in tokenizer.encode_batch_fast(lines, add_special_tokens=False)], "zoo")

    def plain() -> None:
        build([encode(line) for line in lines], "python wordpiece")

    times = interleaved({"zoo": ours, "python wordpiece": plain}, rounds, "cpu")
    slow = times["python wordpiece"]
    rows = [
        {
            "side": name,
            "tokens/s": round(counts[name] / statistics.median(values)),
            "x plain": round(statistics.median(p / v for p, v in zip(slow, values, strict=True)), 2),
        }
        for name, values in times.items()
    ]
    return report("Text to examples", {"lines": len(lines), "rounds": rounds}, "cpu", rows)


def interleaved(sides: dict[str, Callable[[], Any]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each side, in turns, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, run in sides.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if index:
                times[name].append(time.perf_counter() - start)
    return times


def report(name: str, settings: dict[str, Any], device: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"benchmark": name, "settings": settings, "machine": machine(device), "rows": rows, "notes": []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "data"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default=None, help="where to write the report")
    args = parser.parse_args()
    made = step(args.batch, args.length, args.rounds, args.device) if args.what == "step" else data(args.rounds)
    write_report(made, args.json)


if __name__ == "__main__":
    main()

"""Speed of the text rooms: ELECTRA's training step beside its peers, and the data pipeline beside the official builder.

    python benchmarks/text.py step --peer CLONE_OF_electra_pytorch
    python benchmarks/text.py data --official CLONE_OF_electra --vocab vocab.txt

`step` times whole training steps of ELECTRA-Small - both networks, backward, clipping, optimiser - in turns within one
process, from the same start: ours; `--peer`, the model class of github.com/richarddwang/electra_pytorch (the PyTorch
reproduction of the paper) with its sampling, its two losses and torch's fused AdamW; and the plain way to write it with
transformers: vocabulary logits of all places, Gumbel noise for each word, eager attention.

`data` times text to examples on one core: ours; `--official`, the tokenizer and example builder of
github.com/google-research/electra without what it does to write TensorFlow records; and a word-by-word WordPiece in
Python, leaner than the official one since it handles plain English only.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import torch
from torch import nn
from torch.nn import functional as F

from datamodules.text import PYTHON_DOCS, Documents
from datamodules.text_base import corpus_tokenizer
from datamodules.text_encoding import LineEncoder
from datamodules.text_packing import electra_examples
from zoo.nn.text import load_tokenizer
from zoo.optim_text import BertAdam, text_groups
from zoo.papers.electra import Electra
from zoo.papers.electra.corruption import mask_tokens, replace_tokens

Step = Callable[[], Any]


# ---------------------------------------------------------------- the training step


def build_step(side: str, args: argparse.Namespace) -> tuple[Step, Electra]:
    """One training step of a side, and the model that its weights came from."""
    torch.manual_seed(0)
    model = Electra(tokenizer=None, dropout=args.dropout, warmup_steps=1, num_layers=args.layers).to(args.device)
    ids = torch.randint(1000, 30000, (args.batch, args.length), device=args.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if side == "zoo":
        optimizer: torch.optim.Optimizer = BertAdam(text_groups(model, lr=5e-4, weight_decay=0.01), lr=5e-4)
        parameters = list(model.parameters())

        def loss() -> torch.Tensor:
            return model.pretraining_task(batch).loss
    else:
        networks = nn.ModuleList([model.to_transformers("generator"), model.to_transformers("discriminator")])
        networks.to(args.device).train()
        generator, discriminator = networks
        discriminator.electra.embeddings = generator.electra.embeddings
        generator.tie_weights()
        parameters = list(networks.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=5e-4, fused=True)
        if side == "plain transformers":
            for network in networks:
                network.set_attn_implementation("eager")

            def loss() -> torch.Tensor:
                return plain_loss(model, batch, generator, discriminator)
        else:
            loss = peer_loss(args.peer, model, batch, generator, discriminator)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step, model


def plain_loss(model: Electra, batch: dict[str, torch.Tensor], generator: Any, discriminator: Any) -> torch.Tensor:
    """ELECTRA as it is usually written with transformers' classes."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    masked = mask_tokens(ids, mask, model.special, model.hparams.mask_prob)
    logits = generator(input_ids=masked.input_ids, attention_mask=mask).logits
    chosen = logits.gather(1, masked.positions[..., None].expand(-1, -1, logits.shape[-1]))
    loss = F.cross_entropy(chosen.flatten(0, 1), masked.ids.flatten())
    with torch.no_grad():
        noise = -torch.log(-torch.log(torch.rand_like(chosen) + 1e-9) + 1e-9)
        sampled = (chosen + noise).argmax(-1)
    corrupted, _ = replace_tokens(ids, masked, sampled)
    labels = (corrupted != ids).long()
    return loss + 50 * discriminator(input_ids=corrupted, attention_mask=mask, labels=labels).loss


def peer_loss(
    folder: str, model: Electra, batch: dict[str, torch.Tensor], generator: Any, discriminator: Any
) -> Callable[[], torch.Tensor]:
    """The loss of electra_pytorch: its model class is taken out of `pretrain.py`, which is a script that trains."""
    tree = ast.parse(Path(folder, "pretrain.py").read_text(encoding="utf-8"))
    wanted = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "ELECTRAModel"]
    settings = types.SimpleNamespace(sampling="fp32_gumbel", my_model=False)
    scope: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "c": settings}
    exec(compile(ast.Module(wanted, []), "pretrain.py", "exec"), scope)
    network = scope["ELECTRAModel"](generator, discriminator, types.SimpleNamespace(pad_token_id=0))
    network.to(batch["input_ids"].device)
    ids, lengths = batch["input_ids"], batch["attention_mask"].sum(1)

    def loss() -> torch.Tensor:
        masked = mask_tokens(ids, batch["attention_mask"], model.special, model.hparams.mask_prob)
        chosen = torch.zeros_like(ids).scatter(1, masked.positions, 1).bool()
        targets = ids.masked_fill(~chosen, -100)
        mlm, _, disc, replaced, real, _ = network(masked.input_ids, lengths, chosen, targets)
        disc, replaced = disc.masked_select(real), replaced.masked_select(real)
        detection = F.binary_cross_entropy_with_logits(disc.float(), replaced.float())
        return F.cross_entropy(mlm.float(), targets[chosen]) + 50 * detection

    return loss


def step(args: argparse.Namespace) -> common.Report:
    sides = ["zoo", *(["electra_pytorch"] if args.peer else []), "plain transformers"]
    steps = {side: build_step(side, args) for side in sides}
    flops = common.matmul_flops(steps["zoo"][0])
    square = 1024
    products, product_flops = common.matmul_sides([(square,) * 3], torch.float32, args.device)
    runs = {side: made[0] for side, made in steps.items()} | products
    times = common.alternate(runs, args.device, args.rounds, 1.0)
    peak = max(product_flops[name] / common.median([t[name] for t in times]) for name in products)
    tokens, rows = args.batch * args.length, []
    for side in sides:
        seconds = common.median([t[side] for t in times])
        row = {"side": side, "ms/step": 1e3 * seconds, "tokens/s": round(tokens / seconds)}
        for other in sides[1:]:
            row[f"x {other}"] = round(common.median([t[other] / t[side] for t in times]), 2)
        row["share of peak"] = round(flops / seconds / peak, 3) if side == "zoo" else None
        if not args.no_memory:
            given = [f"--{key}={getattr(args, key)}" for key in ("batch", "length", "layers", "dropout", "device")]
            given += [f"--peer={args.peer}"] if args.peer else []
            row["peak MiB"] = round(common.in_own_process(__file__, "step", f"--peak-of={side}", *given) / 2**20)
        rows.append(row)
    settings = {"batch": args.batch, "length": args.length, "rounds": args.rounds}
    notes = [
        f"{flops / 1e9:.0f} GFLOP of matrix products in one of our steps.",
        f"Peak: a matrix product of {square} x {square} at {peak / 1e9:.0f} GFLOP/s.",
    ]
    return {"benchmark": "ELECTRA-Small step", "settings": settings, "machine": common.machine(args.device),
            "rows": rows, "notes": notes}  # fmt: skip


def peak_memory(args: argparse.Namespace) -> int:
    """Bytes at the peak of three steps of one side, alone in this process, above what was there before."""
    run, _ = build_step(args.peak_of, args)
    before = common.resident_bytes("VmRSS")
    for _ in range(3):
        run()
    return common.resident_bytes("VmHWM") - before


# ---------------------------------------------------------------- text to examples


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


def official_builder(folder: str, vocab: str) -> Callable[[list[str]], int]:
    """Runs the official tokenizer and example builder over lines; without TensorFlow, so its records are not made."""

    class Nothing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

    tf = types.ModuleType("tensorflow")
    v1 = types.ModuleType("tensorflow.compat.v1")
    v1.train = types.SimpleNamespace(Example=Nothing, Features=Nothing, Feature=Nothing, Int64List=Nothing)  # type: ignore[attr-defined]
    opened = types.SimpleNamespace(GFile=lambda path, mode: Path(path).open(mode, encoding="utf-8"))  # noqa: SIM115
    v1.io = types.SimpleNamespace(gfile=opened)  # type: ignore[attr-defined]
    sys.modules |= {"tensorflow": tf, "tensorflow.compat": types.ModuleType("tensorflow.compat")}
    sys.modules["tensorflow.compat.v1"] = v1
    sys.modules["tensorflow.compat"].v1 = v1  # type: ignore[attr-defined]
    six = types.ModuleType("six")
    six.PY2, six.PY3 = False, True  # type: ignore[attr-defined]
    sys.modules.setdefault("six", six)
    sys.path.insert(0, folder)
    import build_pretraining_dataset as official  # type: ignore[import-not-found]
    from model.tokenization import FullTokenizer  # type: ignore[import-not-found]

    tokenizer = FullTokenizer(vocab_file=vocab, do_lower_case=True)

    def run(lines: list[str]) -> int:
        random.seed(0)
        builder = official.ExampleBuilder(tokenizer, 128)
        return sum(builder.add_line(line) is not None for line in lines)

    return run


def text_lines(source: str, count: int) -> Iterator[str]:
    for document in Documents(source):
        yield from document.split("\n")
        yield ""
        count -= document.count("\n") + 1
        if count <= 0:
            return


def data(args: argparse.Namespace) -> common.Report:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    lines = list(text_lines(args.text, args.lines))
    tokenizer = load_tokenizer(args.vocab) if args.vocab else corpus_tokenizer([Documents(PYTHON_DOCS)], None, 8000)
    lean = python_wordpiece(tokenizer.get_vocab())
    tokens = sum(map(len, LineEncoder(tokenizer)(lines)))

    def build(ids: list[list[int]]) -> int:
        return sum(1 for _ in electra_examples([*ids, []], 128, random.Random(0)))

    sides: dict[str, Step] = {
        "zoo": lambda: build(LineEncoder(tokenizer)(lines)),  # a new one: nothing is known before
        "tokenizers alone": lambda: build(
            [e.ids for e in tokenizer.encode_batch_fast(lines, add_special_tokens=False)]
        ),
        "python wordpiece": lambda: build([lean(line) for line in lines]),
    }
    if args.official:
        if not args.vocab:
            raise SystemExit("--official needs --vocab: the vocabulary that both sides read.")
        official = official_builder(args.official, args.vocab)
        sides["official"] = lambda: official(lines)
    times = common.alternate(sides, "cpu", args.rounds, 1.0)
    rows = []
    for side in sides:
        row: dict[str, Any] = {"side": side, "tokens/s": round(tokens / common.median([t[side] for t in times]))}
        for other in list(sides)[1:]:
            row[f"x {other}"] = round(common.median([t[other] / t[side] for t in times]), 2)
        rows.append(row)
    settings = {"lines": len(lines), "tokens": tokens, "rounds": args.rounds}
    return {"benchmark": "Text to examples", "settings": settings, "machine": common.machine("cpu"), "rows": rows,
            "notes": ["One core."]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    for name, rounds in (("step", 5), ("data", 5)):
        part = parts.add_parser(name)
        part.add_argument("--rounds", type=int, default=rounds)
        part.add_argument("--json", default=None, help="where to write the report")
        if name == "step":
            part.add_argument("--batch", type=int, default=16)
            part.add_argument("--length", type=int, default=128)
            part.add_argument("--layers", type=int, default=12)
            part.add_argument("--dropout", type=float, default=0.1)
            part.add_argument("--device", default="cpu")
            part.add_argument("--peer", default=None, help="clone of github.com/richarddwang/electra_pytorch")
            part.add_argument("--no-memory", action="store_true", help="skip peak memory, which takes a process a side")
            part.add_argument("--peak-of", default=None, help=argparse.SUPPRESS)
        else:
            part.add_argument("--text", default=PYTHON_DOCS, help="a source of text")
            part.add_argument("--lines", type=int, default=20000)
            part.add_argument("--vocab", default=None, help="BERT vocab.txt; without, one is trained")
            part.add_argument("--official", default=None, help="clone of github.com/google-research/electra")
    args = parser.parse_args()
    if args.what == "step" and args.peak_of:
        print(json.dumps(peak_memory(args)))
        return
    common.write_report(step(args) if args.what == "step" else data(args), args.json)


if __name__ == "__main__":
    main()

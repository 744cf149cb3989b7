"""Pictures of ELECTRA: text with the replaced tokens and the discriminator's view, and the run's curves."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from zoo.nn.text import tokens_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LINE = 122  # characters
_ROWS = 4  # lines of a sequence
_BASELINES = {"val/disc_loss_prior": "share of replaced tokens alone", "val/unigram_acc": "most frequent token"}


def draw_detection(tokenizer: Tokenizer, batch: dict[str, Tensor], out: Any, max_texts: int = 3) -> Figure:
    """The discriminator's input, shaded by its probability that a token was replaced.

    Framed: really replaced, the original above it. Bold: as many of the most suspected tokens as were replaced.

    Args:
        batch: `input_ids` (B, L) the original text; out: an `ElectraOutput` for it.
    """
    probability = out.disc_logits.detach().float().sigmoid().cpu()
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).cpu()
    probability = probability * real
    original, shown, labels = (x.cpu() for x in (batch["input_ids"], out.disc_input_ids, out.disc_labels))
    count = min(max_texts, len(shown))
    figure, axes = plt.subplots(count, 1, figsize=(12, 1.6 * count + 0.5), squeeze=False)
    colours, top = plt.get_cmap("YlOrRd"), max(float(probability[:count].max()), 1e-6)
    for row, axis in enumerate(axes[:, 0]):
        tokens, before = tokens_of(tokenizer, shown[row].tolist()), tokens_of(tokenizer, original[row].tolist())
        total = int(labels[row].sum())
        suspects = set(probability[row].topk(total).indices.tolist())
        hits = sum(bool(labels[row, at]) for at in suspects)
        column = line = 0
        for at, token in enumerate(tokens):
            replaced, shade = bool(labels[row, at]), float(probability[row, at])
            width = max(len(token), len(before[at]) if replaced else 0) + 1
            if column + width > _LINE:
                column, line = 0, line + 1
            if line >= _ROWS or token == "[PAD]":
                break
            axis.text(
                column / _LINE,
                -line,
                token.replace("$", r"\$"),
                family="monospace",
                fontsize=9,
                va="center",
                weight="bold" if at in suspects else "normal",
                color="white" if shade > 0.7 * top else "black",
                bbox={
                    "boxstyle": "round,pad=0.12",
                    "facecolor": colours(shade / top * 0.9) if shade > 0.05 else "white",
                    "edgecolor": "tab:blue" if replaced else "none",
                    "linewidth": 1.6,
                },
            )
            if replaced:
                axis.text(
                    column / _LINE, -line + 0.48, before[at].replace("$", r"\$"), family="monospace", fontsize=7,
                    va="center", color="tab:blue",
                )  # fmt: skip
            column += width
        axis.set(xlim=(-0.005, 1), ylim=(-_ROWS + 0.4, 0.7))
        chance = total * total / int(real[row].sum())
        axis.set_title(
            f"of the {total} most suspected tokens (bold) {hits} were replaced; by chance {chance:.1f}",
            fontsize=9, loc="right", pad=2,
        )  # fmt: skip
        axis.axis("off")
    figure.suptitle(
        f"Shade: how sure the discriminator is that a token was replaced (darkest {top:.0%}). "
        "Blue frame: it was; above it the original.",
        fontsize=10,
    )
    figure.tight_layout()
    return figure


def draw_curves(trainer: Any) -> Figure | None:
    """Losses and replaced-token AUC over the steps of the run, from its metrics file; None if there is none yet."""
    rows: list[dict[str, str]] = []
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            logger.save()
            path = f"{logger.log_dir}/metrics.csv"
            try:
                with open(path, encoding="utf-8", newline="") as file:
                    rows = list(csv.DictReader(file))
            except OSError:
                return None
    panels = [
        ("generator loss", ("train/mlm_loss", "val/mlm_loss")),
        ("discriminator loss", ("train/disc_loss", "val/disc_loss", "val/disc_loss_prior")),
        ("discriminator AUC", ("val/disc_auc",)),
        ("masked-token accuracy", ("val/mlm_acc", "val/main_acc", "val/unigram_acc")),
    ]
    panels = [(title, [key for key in keys if any(row.get(key) for row in rows)]) for title, keys in panels]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        return None
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), squeeze=False)
    for axis, (title, keys) in zip(axes[0], panels, strict=True):
        for key in keys:
            points = torch.tensor([(float(row["step"]), float(row[key])) for row in rows if row.get(key)])
            name = _BASELINES.get(key, key)
            style = {"linestyle": "--", "color": "0.5"} if key in _BASELINES else {}
            marker = "" if key.startswith("train") else "."
            axis.plot(points[:, 0], points[:, 1], marker=marker, label=name, **style)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=7)
    figure.tight_layout()
    return figure

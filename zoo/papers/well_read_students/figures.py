"""Pictures: text with its masked words and the model's guesses; the accuracy of each way to train a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from zoo.nn.text import tokens_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CURVES = {
    "masked-token loss": ("train/mlm_loss", "val/mlm_loss"),
    "masked-token accuracy": ("val/mlm_acc", "val/unigram_acc"),
    "next-sentence loss": ("train/nsp_loss", "val/nsp_loss"),
    "next-sentence accuracy": ("val/nsp_acc",),
}
_LINE, _ROWS = 118, 4  # characters a line, lines a text


def draw_guesses(tokenizer: Tokenizer, input_ids: Tensor, out: Any, max_texts: int = 3) -> Figure:
    """Each masked place shows the model's first guess, green where right; above a wrong one stands the original.

    Args:
        input_ids: (B, L) the original text; out: the `PretrainingOutput` for it.
    """
    guesses = out.mlm_logits.detach().argmax(-1).cpu()
    positions, used = out.masked.positions.cpu(), out.masked.weights.bool().cpu()
    count = min(max_texts, len(input_ids))
    figure, axes = plt.subplots(count, 1, figsize=(12, 1.7 * count + 0.5), squeeze=False)
    for row, axis in enumerate(axes[:, 0]):
        tokens = tokens_of(tokenizer, input_ids[row].tolist())
        guessed = dict(
            zip(positions[row][used[row]].tolist(), tokens_of(tokenizer, guesses[row][used[row]].tolist()), strict=True)
        )
        column = line = hits = total = 0
        for at, token in enumerate(tokens):
            shown = guessed.get(at, token)
            width = max(len(shown), len(token)) + 1
            if column + width > _LINE:
                column, line = 0, line + 1
            if line >= _ROWS or token == "[PAD]":
                break
            box = None
            if at in guessed:
                total, hits = total + 1, hits + (shown == token)
                colour = "tab:green" if shown == token else "tab:red"
                box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": colour, "linewidth": 1.6}
                if shown != token:
                    axis.text(
                        column / _LINE, -line + 0.45, token.replace("$", r"\$"), family="monospace", fontsize=7,
                        color="tab:red", va="center",
                    )  # fmt: skip
            axis.text(
                column / _LINE, -line, shown.replace("$", r"\$"), family="monospace", fontsize=9, va="center", bbox=box
            )
            column += width
        axis.set(xlim=(-0.005, 1), ylim=(-_ROWS + 0.4, 0.7))
        axis.set_title(f"{hits} of {total} right", fontsize=9, loc="right", pad=2)
        axis.axis("off")
    figure.suptitle(
        "Framed: a masked word and the model's guess (green right, red wrong; above it the original).", fontsize=10
    )
    figure.tight_layout()
    return figure


def draw_comparison(scores: dict[str, list[float]], titles: dict[str, str], guessing: float | None = None) -> Figure:
    """A bar a method (mean), a dot a seed, lines for the teacher and for guessing the largest class.

    `scores` maps "teacher" and methods to accuracies.
    """
    methods = [key for key in scores if key != "teacher"]
    figure, axis = plt.subplots(figsize=(8, 0.55 * len(methods) + 1.6))
    for row, key in enumerate(reversed(methods)):
        values = scores[key]
        colour = "tab:blue" if key.endswith("D") else "tab:gray"
        axis.barh(row, 100 * sum(values) / len(values), color=colour, alpha=0.55, height=0.62)
        axis.scatter([100 * value for value in values], [row] * len(values), color="black", s=14, zorder=3)
    axis.axvline(100 * scores["teacher"][0], color="tab:green", linestyle="--", label="teacher")
    if guessing is not None:
        axis.axvline(100 * guessing, color="tab:red", linestyle=":", label="guessing the largest class")
    axis.set_yticks(range(len(methods)), [f"{titles[key]}  ({key})" for key in reversed(methods)])
    every = [100 * value for values in scores.values() for value in values]
    every += [] if guessing is None else [100 * guessing]
    axis.set_xlim(max(0, min(every) - 10), min(100, max(every) + 5))
    axis.set_xlabel("development accuracy (%)")
    axis.set_title("Blue: learned from the teacher's probabilities; grey: from the labels. Dots: seeds.", fontsize=9)
    axis.legend(loc="lower right")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    return figure

"""`zoo faces benchmark`: any encoders over the five tasks and several numbers of labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from zoo.errors import ZooError, did_you_mean

Shot = int | float


def benchmark_encoders(
    encoders: Sequence[str], tasks: dict[str, Any], shots: Sequence[Shot], seeds: Sequence[int], output: Path, *,
    mode: str, steps: int, image_size: int, normalize: Any, device: str, facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Fits and scores every head; returns encoder, task, shot: the headline number of each seed.

    Every encoder is built before the first head is fitted, so that a name that cannot be had stops at once. What is
    known is written after each encoder (`write_report`): an interrupted run leaves a report of those before.

    Args:
        tasks: a task's name to its data, see `zoo.papers.face_representation.fewshot`.
        facts: settings to keep beside the numbers.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from datamodules.faces.shots import few_shot
    from zoo.papers.face_representation.fewshot import fit_and_score
    from zoo.papers.face_representation.tasks import HEADLINES, Encoder

    console = Console(stderr=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ZooError(f"Cannot write to {output}: {error}.") from error
    if len(set(encoders)) < len(encoders):
        raise ZooError("An encoder is given twice.")
    wanted = {name: _possible(name, data, shots, console) for name, data in tasks.items()}
    networks = {(spec, seed): build_network(spec, seed) for spec in encoders
                for seed in (seeds if spec.startswith("random:") else seeds[:1])}  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    scores: dict[str, Any] = {}
    heads = len(encoders) * len(seeds) * sum(map(len, wanted.values()))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("fitting heads", total=heads)
        for spec in encoders:
            found: dict[str, Any] = {}
            cache: dict[Any, Any] = {}
            encoder: Encoder | None = None
            for seed in seeds:
                network = networks.pop((spec, seed), None)
                if network is not None:
                    encoder, cache = Encoder(network.to(device).eval()), {}
                assert encoder is not None
                for name, data in tasks.items():
                    whole = name == "recognition"
                    subsets = few_shot(len(data["train"]), wanted[name], seed, data["subjects"], whole_subjects=whole)
                    for label, indices in subsets.items():
                        progress.update(bar, description=f"{spec}, {name}, {label} labels")
                        numbers, _ = fit_and_score(
                            encoder, name, data, indices, mode=mode, seed=seed, steps=steps, cache=cache,
                            normalize=normalize, image_size=image_size,
                        )  # fmt: skip
                        found.setdefault(name, {}).setdefault(label, []).append(numbers[HEADLINES[name].key])
                        progress.advance(bar)
            scores[spec] = found
            write_report(output, scores, facts)
    return scores


def write_report(output: Path, scores: dict[str, Any], facts: dict[str, Any]) -> None:
    """The table (benchmark.md), every number (benchmark.json) and the curves (benchmark.png)."""
    from matplotlib import pyplot as plt

    from zoo.papers.face_representation.figures import draw_curves
    from zoo.papers.face_representation.report import scores_markdown
    from zoo.papers.face_representation.tasks import HEADLINES

    (output / "benchmark.json").write_text(json.dumps({**facts, "scores": scores}, indent=2) + "\n", encoding="utf-8")
    (output / "benchmark.md").write_text(scores_markdown(scores), encoding="utf-8")
    figure = draw_curves(scores, HEADLINES)
    figure.savefig(output / "benchmark.png", dpi=150, bbox_inches="tight")
    plt.close(figure)


def build_network(spec: str, seed: int) -> Any:
    """The timm network behind an encoder's name: timm:NAME, random:NAME, or what `zoo.load` takes."""
    import timm
    import torch

    from zoo.tasks.start import start_model

    if spec.startswith("timm:"):
        name = spec.removeprefix("timm:")
        if name not in timm.list_models():
            raise ZooError(f"There is no network {name!r} in timm.{did_you_mean(name, timm.list_models())}")
        try:
            return timm.create_model(name, pretrained=True, num_classes=0)
        except Exception as error:  # no network, no weights: whatever the hub's client raises
            raise ZooError(f"timm's weights of {name} cannot be had: {str(error).splitlines()[0][:120]}.") from error
    if spec.startswith("random:"):
        name = spec.removeprefix("random:")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if name in timm.list_models():
                return timm.create_model(name, num_classes=0)
            return start_model(name, pretrained=False).backbone
    return start_model(spec).backbone


def _possible(task: str, data: Any, shots: Sequence[Shot], console: Console) -> list[Shot]:
    """The shots that the training set is large enough for; the others are named."""
    count = len(data["train"])
    fits = [shot for shot in shots if not (isinstance(shot, int) and shot > count)]
    left = [str(shot) for shot in shots if shot not in fits]
    if not fits:
        raise ZooError(f"{task} has {count} training samples, fewer than every --shot ({', '.join(left)}).")
    if left:
        console.print(f"{task} has {count} training samples: without --shot {', '.join(left)}", highlight=False)
    return fits

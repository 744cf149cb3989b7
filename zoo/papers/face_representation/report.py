"""Does pre-training help where labels are few? Five tasks, a table, pictures; after training, in the same run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.papers.face_representation.encoder import FaceEncoder
from zoo.papers.face_representation.fewshot import fit_and_score
from zoo.papers.face_representation.tasks import HEADLINES, TASKS, Encoder

Scores = dict[str, dict[str, dict[str, list[float]]]]
"""encoder, task, shot: the headline number of every seed."""


class FewShotReport(Callback):
    """When pre-training ends: heads on few labels, beside the same network with random weights, over several seeds.

    The data module gives the tasks with `face_tasks() -> {task: data}` (see `fewshot.fit_and_score`) and the index
    sets with `face_shots(data, shots, seed) -> {shot: indices}`. Prints a table; writes `results.json`,
    `results_tasks.json` (every single number) and pictures.

    Args:
        shots: numbers of labelled images.
        seeds: each draws its own labels, head and untrained network.
        steps: of fitting a head. mode: "frozen" or "finetune".
        reference: a timm model with its own pre-trained weights as a third column ("resnet18"), where they lie in the
            cache already: nothing is downloaded.
    """

    def __init__(
        self,
        shots: Sequence[int] = (50, 500),
        seeds: Sequence[int] = (0, 1, 2),
        steps: int = 200,
        mode: str = "frozen",
        reference: str | None = None,
    ) -> None:
        if not shots or not seeds or steps < 1:
            raise ZooError("FewShotReport needs one shot, one seed and one step at the least.")
        self.shots, self.seeds, self.steps, self.mode, self.reference = list(shots), list(seeds), steps, mode, reference

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not hasattr(trainer.datamodule, "face_tasks"):  # type: ignore[attr-defined]
            raise ZooError("FewShotReport needs a data module with face_tasks(): take it out of the recipe.")
        if self.reference:
            import timm

            if timm.get_pretrained_cfg(self.reference) is None:
                raise ZooError(f"FewShotReport: timm has no weights for {self.reference!r} (reference).")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run or trainer.interrupted:
            return
        assert isinstance(pl_module, FaceEncoder)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        was_training = pl_module.training
        pl_module.eval()
        with torch.inference_mode(False), torch.enable_grad():
            tasks = data.face_tasks()
            scores, predictions = self._run(pl_module, data, tasks)
        pl_module.train(was_training)
        folder = run_folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results_tasks.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        (folder / "results.json").write_text(json.dumps(result_rows(scores), indent=2) + "\n", encoding="utf-8")
        print_scores(scores, f"Few labels, {self.mode} features, mean and spread of {len(self.seeds)} seeds")
        self._draw(folder / "figures", pl_module, data, tasks, predictions)

    def _run(self, module: FaceEncoder, data: Any, tasks: dict[str, Any]) -> tuple[Scores, dict[str, np.ndarray]]:
        size = module.hparams["image_size"]
        scores: Scores = {}
        shown: dict[str, np.ndarray] = {}
        caches: dict[str, dict[Any, Any]] = {}
        for seed in self.seeds:
            sides = {"pre-trained": module, "untrained": _untrained(module, seed)}
            for side, model in sides.items():
                cache = caches.setdefault(side if side == "pre-trained" else f"{side} {seed}", {})
                found = self._score(Encoder(model.backbone), data, tasks, seed, cache, size)
                for (task, shot), (value, prediction) in found.items():
                    scores.setdefault(side, {}).setdefault(task, {}).setdefault(shot, []).append(value)
                    if task == "landmarks" and shot == f"{self.shots[-1]:g}" and seed == self.seeds[0]:
                        shown[side] = prediction
            caches.pop(f"untrained {seed}")
        network = cached_network(self.reference) if self.reference else None
        if network is not None:
            cache: dict[Any, Any] = {}
            for seed in self.seeds:
                encoder = Encoder(network.to(module.device))
                for (task, shot), (value, _) in self._score(encoder, data, tasks, seed, cache, size).items():
                    scores.setdefault(f"timm's {self.reference}", {}).setdefault(task, {}).setdefault(shot, []).append(
                        value
                    )
        return scores, shown

    def _score(
        self, encoder: Encoder, data: Any, tasks: dict[str, Any], seed: int, cache: dict[Any, Any], size: int
    ) -> dict[tuple[str, str], tuple[float, np.ndarray]]:
        found = {}
        for task in TASKS:
            if task not in tasks:
                continue
            for shot, chosen in data.face_shots(task, tasks[task], self.shots, seed).items():
                numbers, prediction = fit_and_score(
                    encoder, task, tasks[task], chosen, mode=self.mode, seed=seed, steps=self.steps, cache=cache,
                    normalize=data.normalize, image_size=size,
                )  # fmt: skip
                found[task, shot] = numbers[HEADLINES[task].key], prediction
        return found

    def _draw(self, folder: Any, module: FaceEncoder, data: Any, tasks: dict[str, Any], shown: dict[str, Any]) -> None:
        from matplotlib import pyplot as plt

        from zoo.papers.face_representation.figures import draw_landmarks, draw_prototypes, draw_sheet

        folder.mkdir(parents=True, exist_ok=True)
        test = tasks["landmarks"]["test"]
        rows = np.linspace(0, len(test) - 1, min(6, len(test))).astype(int)
        pictures = [test[int(row)]["image"] for row in rows]
        truth = np.stack([np.asarray(test[int(row)]["target"]) for row in rows])
        count = min(60, len(test))
        figures = {
            "landmarks": draw_landmarks(pictures, truth, {side: values[rows] for side, values in shown.items()}),
            "faces": draw_sheet([test[index]["image"] for index in range(count)]),
        }
        if hasattr(module, "prototypes"):
            images = torch.stack([test[index]["image"] for index in range(len(test))])
            figures["prototypes"] = draw_prototypes(images, _prototype_scores(module, images, data.normalize))
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=130, bbox_inches="tight")
            plt.close(figure)


def cached_network(name: str) -> Any:
    """timm's network with its own weights if the hub's cache has them, else None."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    assert config is not None
    for file in ("model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(config.hf_hub_id, file) if config.hf_hub_id else None
        if isinstance(path, str):
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, num_classes=0)
    return None


def result_rows(scores: Scores) -> list[dict[str, Any]]:
    """The means as `ProbeReport` writes its rows."""
    rows = []
    for task, shots in scores["pre-trained"].items():
        for shot, values in shots.items():
            rows.append({
                "name": f"{HEADLINES[task].title}, {shot} labels", "value": float(np.mean(values)),
                "baseline": float(np.mean(scores["untrained"][task][shot])),
                "baseline_name": "same network untrained",
                "better": "higher" if HEADLINES[task].higher else "lower",
            })  # fmt: skip
    return rows


def print_scores(scores: Scores, title: str) -> None:
    """One row a task and shot, one column an encoder; the best of a row in bold."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    sides = list(scores)
    for column in ("task", "labels", *sides):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, shots in scores[sides[0]].items():
        headline = HEADLINES[task]
        for shot in shots:
            means = [float(np.mean(scores[side][task][shot])) for side in sides]
            best = (np.argmax if headline.higher else np.argmin)(means)
            cells = [
                f"{mean:.3g} ± {np.std(scores[side][task][shot]):.2g}" for side, mean in zip(sides, means, strict=True)
            ]
            cells[best] = f"[bold]{cells[best]}[/bold]"
            table.add_row(headline.title + (" ↑" if headline.higher else " ↓"), shot, *cells)
    Console().print(table)


def scores_markdown(scores: Scores) -> str:
    """The same table for a page."""
    sides = list(scores)
    lines = [f"| task | labels | {' | '.join(sides)} |", "|---|---|" + "---|" * len(sides)]
    for task, shots in scores[sides[0]].items():
        title = HEADLINES[task].title + (" ↑" if HEADLINES[task].higher else " ↓")
        for shot in shots:
            values = [scores[side][task][shot] for side in sides]
            cells = [f"{np.mean(of_side):.3g} ± {np.std(of_side):.2g}" for of_side in values]
            lines.append(f"| {title} | {shot} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@torch.no_grad()
def _prototype_scores(module: Any, images: Tensor, normalize: Any) -> np.ndarray:
    """(n, K) cosines of pictures and prototypes."""
    parts = []
    for part in images.split(128):
        crops = [normalize(part.to(module.device))[:, None]]
        parts.append(module.embed(crops)[1][0].cpu())
    return torch.cat(parts).numpy()


def _untrained(model: FaceEncoder, seed: int) -> FaceEncoder:
    arguments = {key: value for key, value in model.hparams.items() if not key.startswith("_")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(**arguments).to(model.device).eval()

"""What a pre-training of BM-MAE learned: withheld sequences and few-label segmentation, beside baselines."""

from __future__ import annotations

import itertools
import json
import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from zoo.callbacks.folder import run_folder
from zoo.errors import ZooError
from zoo.papers.bm_mae.network import MODALITIES
from zoo.seeding import run_seed
from zoo.tasks.start import describe_model

if TYPE_CHECKING:
    from zoo.papers.bm_mae.module import BMMAE


class ReconstructionReport(Callback):
    """Trains a twin without cross-modal tokens on the same batches, and compares when training ends.

    1. Mean squared error of a fully withheld sequence, predicted from the other three, on the held-out subjects:
       this model, the twin, and the voxel-wise mean of the training subjects.
    2. Dice of segmentation trained on a few labelled subjects, from these weights and from scratch: mean over seeds.

    The table is printed and written to `<run folder>/results.json`. It costs as much as a second pre-training: leave it
    out of long runs.

    Args:
        label_subjects: how many labelled subjects to fine-tune on; 0 leaves that part out.
        label_epochs: epochs of fine-tuning.
        label_seeds: repeats of the fine-tuning (order, augmentation and the decoder's random weights).
        label_lr, scratch_lr: learning rates of fine-tuning and of training from scratch, each the best of its own; None
            for the latter takes the former.
    """

    def __init__(
        self,
        label_subjects: int = 4,
        label_epochs: int = 40,
        label_seeds: int = 1,
        label_lr: float = 1e-3,
        scratch_lr: float | None = None,
    ) -> None:
        if label_seeds < 1:
            raise ZooError(f"label_seeds is at least 1, not {label_seeds}; label_subjects 0 leaves that part out.")
        self.label_subjects, self.label_epochs, self.label_seeds = label_subjects, label_epochs, label_seeds
        self.label_lr, self.scratch_lr = label_lr, label_lr if scratch_lr is None else scratch_lr
        self.twin: BMMAE | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._restored: dict[str, Any] | None = None

    # ------------------------------------------------------------------ the twin

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from zoo.papers.bm_mae.module import BMMAE

        if not isinstance(pl_module, BMMAE):
            raise ZooError(f"ReconstructionReport is for BMMAE, not {type(pl_module).__name__}.")
        if not trainer.is_global_zero:
            return
        with torch.random.fork_rng():  # what training draws must not depend on this callback
            arguments = describe_model(pl_module)["init_args"]
            self.twin = BMMAE(**(arguments | {"cross_modal": False, "compile": False})).to(pl_module.device)
            self.twin.load_state_dict(pl_module.state_dict())
        trained = [parameter for parameter in self.twin.parameters() if parameter.requires_grad]
        h = pl_module.hparams
        self.optimizer = torch.optim.AdamW(trained, lr=h.lr, betas=tuple(h.betas), weight_decay=h.weight_decay)
        if self._restored is not None:
            self.twin.load_state_dict(self._restored["twin"])
            self.optimizer.load_state_dict(self._restored["optimizer"])
            self._restored = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.twin is None or self.optimizer is None:
            return
        if any(name not in batch for name in MODALITIES) or not bool(batch.get("present", torch.tensor(True)).all()):
            raise ZooError(
                "ReconstructionReport withholds each of the four sequences in turn, so every subject needs all four: "
                "take it out of the recipe's callbacks."
            )
        volumes = {name: batch[name] for name in MODALITIES}
        for group in self.optimizer.param_groups:
            group["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(trainer.global_step)
            self.twin.train()
            self.optimizer.zero_grad()
            self.twin.restoration(volumes, self.twin.draw_masks(len(volumes["t1"]))).loss.backward()
            self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        if self.twin is None or self.optimizer is None:
            return {}
        return {"twin": self.twin.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    # ------------------------------------------------------------------ the comparison

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.twin is None or trainer.fast_dev_run:
            return
        was_training = pl_module.training
        with torch.random.fork_rng():
            torch.manual_seed(run_seed())
            rows = self._withheld(trainer, pl_module)  # type: ignore[arg-type]
            if self.label_subjects:
                rows += self._segmentation(trainer, pl_module)  # type: ignore[arg-type]
        pl_module.train(was_training)
        self._print(rows)
        path = run_folder(trainer) / "results.json"
        path.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def _withheld(self, trainer: Trainer, model: BMMAE) -> list[dict[str, Any]]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        assert self.twin is not None
        mean = _mean_volumes(data.dataset(data.train_data.subjects, train=False), model.device)
        model.eval(), self.twin.eval()
        errors: dict[str, list[Tensor]] = {
            f"{name}/{side}": [] for name in MODALITIES for side in ("ours", "twin", "mean")
        }
        for batch in data.val_dataloader():
            volumes = {name: batch[name].to(model.device) for name in MODALITIES}
            for name in MODALITIES:
                given = {other: volume for other, volume in volumes.items() if other != name}
                guesses = {"ours": model.reconstruct(given)[name], "twin": self.twin.reconstruct(given)[name],
                           "mean": mean[name]}  # fmt: skip
                for side, guess in guesses.items():
                    errors[f"{name}/{side}"].append((guess - volumes[name]).square().mean((1, 2, 3, 4)))
        value = {key: float(torch.cat(parts).mean()) for key, parts in errors.items()}
        rows = []
        for side, label in (("mean", "mean of the training subjects"), ("twin", "no cross-modal tokens")):
            for name in MODALITIES:
                rows.append(dict(name=f"withheld {name}: MSE", value=value[f"{name}/ours"],
                                 baseline=value[f"{name}/{side}"], baseline_name=label))  # fmt: skip
        return rows

    def _segmentation(self, trainer: Trainer, model: BMMAE) -> list[dict[str, Any]]:
        from zoo.callbacks.quiet import quiet_trainer, silence
        from zoo.tasks.volume_segmentation import VolumeSegmentation

        train, val = trainer.datamodule.labelled_dataloaders(self.label_subjects)  # type: ignore[attr-defined]
        scores: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        runs = list(itertools.product(range(self.label_seeds), (False, True)))
        for repeat, scratch in track(runs, "Segmentation from few labels", transient=True):
            torch.manual_seed(run_seed() + repeat)  # the same decoder on both sides
            task = VolumeSegmentation(
                describe_model(model), from_scratch=True, inference="crop", hd95="never",
                lr=self.scratch_lr if scratch else self.label_lr, warmup_epochs=self.label_epochs / 7,
            )  # fmt: skip
            if not scratch:
                own = task.network.encoder.state_dict()
                task.network.encoder.load_state_dict({key: model.backbone.state_dict()[key] for key in own})
            with silence():
                fitter = quiet_trainer(max_epochs=self.label_epochs, accelerator=model.device.type)
                fitter.fit(task, train)
                scores[scratch].append(fitter.validate(task, val, verbose=False)[0])
        rows = []
        for key, name in (("dice", "mean"), ("dice_tc", "TC"), ("dice_wt", "WT"), ("dice_et", "ET")):
            tuned, scratch_scores = ([score[f"val/{key}"] for score in scores[side]] for side in (False, True))
            if math.isnan(sum(tuned + scratch_scores)):  # no held-out subject has this region
                continue
            rows.append(dict(name=f"Dice {name}, {self.label_subjects} labelled subjects", value=fmean(tuned),
                             baseline=fmean(scratch_scores), baseline_name="from scratch",
                             seeds=tuned, baseline_seeds=scratch_scores))  # fmt: skip
        return rows

    @staticmethod
    def _print(rows: list[dict[str, Any]]) -> None:
        table = Table(title="What it learned (held-out subjects)", box=box.SIMPLE_HEAD, title_justify="left")
        for column, justify in (("", "left"), ("trained", "right"), ("baseline", "right"), ("", "left")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(row["name"], _cell(row, "value", "seeds"), _cell(row, "baseline", "baseline_seeds"),
                          row["baseline_name"])  # fmt: skip
        Console().print(table)


def _cell(row: dict[str, Any], mean: str, seeds: str) -> str:
    each = row.get(seeds, [])
    return f"{row[mean]:.3f}" + (f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else "")


def _mean_volumes(dataset: Any, device: torch.device) -> dict[str, Tensor]:
    """Voxel-wise mean over the subjects, {sequence: (1, S, S, S)}."""
    total: dict[str, Tensor] = {}
    for index in range(len(dataset)):
        item = dataset[index]
        for name in MODALITIES:
            total[name] = total.get(name, 0) + item[name] / len(dataset)
    return {name: volume.to(device) for name, volume in total.items()}

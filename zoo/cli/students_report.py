"""The quickstart's second half: the pre-trained student in the paper's comparison, on the made-up language."""

from __future__ import annotations

from pathlib import Path

from lightning import LightningModule, Trainer

from zoo.callbacks.folder import run_folder
from zoo.callbacks.probe_report import ProbeReport
from zoo.errors import ZooError

_TASK = "made-up"


class CompareStudents(ProbeReport):
    """`ProbeReport`, and then `zoo students compare` with this run as the student's pre-training.

    A teacher is pre-trained and fine-tuned, and the student is distilled and fine-tuned from this run, from the
    teacher's bottom layers and from random weights (`<run folder>/students`). An interrupted comparison goes on with
    `--resume`.

    Args:
        teacher: layers x width.
        teacher_steps: of its pre-training.
        seeds: of every student; 0 leaves the comparison out.
        knn_k: neighbours of the k-NN probe.
    """

    def __init__(self, teacher: str = "4x128", teacher_steps: int = 1200, seeds: int = 3, knn_k: int = 10) -> None:
        super().__init__(knn_k)
        if seeds < 0:
            raise ZooError(f"CompareStudents: seeds is 0 or more, not {seeds}.")
        self.teacher, self.teacher_steps, self.seeds = teacher, teacher_steps, seeds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        root = trainer.datamodule.hparams.get("root")  # type: ignore[attr-defined]
        if self.seeds and root != _TASK:
            raise ZooError(
                f"CompareStudents has labels for data.root {_TASK} only: for text of your own take it out of the "
                "recipe, and see `zoo students compare --help`."
            )
        super().on_fit_start(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if not trainer.is_global_zero or not self.seeds or trainer.interrupted or trainer.fast_dev_run:
            return
        if trainer.world_size > 1:
            print(f"Now compare: zoo students compare FOLDER --student-run {run_folder(trainer)}")
            return
        from zoo.cli.students import compare

        model, data = pl_module.hparams, trainer.datamodule.hparams  # type: ignore[attr-defined]
        folder = Path(run_folder(trainer))
        print("\nNow a teacher, and what the student learns from it and without it (a few minutes more):")
        compare(
            folder / "students",
            student_run=folder,
            student=f"{model['num_layers']}x{model['hidden_size']}",
            teacher=self.teacher,
            teacher_steps=self.teacher_steps,
            seeds=self.seeds,
            vocab_size=data["vocab_size"],
            max_length=data["max_length"],
            pretrain_batch=data["batch_size"],
            pairs=data["examples"] == "bert",
            init_std=model["init_std"],
            pretrain_lr=model["lr"],
        )

"""Finding the checkpoint that `lightning run … --resume` goes on from."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from zoo.checkpoint_files import read_checkpoint
from zoo.errors import ZooError


@dataclass
class Resume:
    """What to go on from.

    Attributes:
        folder: the run folder, None if the recipe was never run.
        checkpoint: the newest whole checkpoint in it, or None.
        notes: what to tell the user.
    """

    folder: Path | None
    checkpoint: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path | None:
        """The settings that the run was started with, if it got so far as to save them."""
        path = self.folder / "config.yaml" if self.folder else None
        return path if path is not None and path.is_file() else None


def find_resume(label: str, run_dir: str | None) -> Resume:
    """Where the recipe `label` goes on: in `run_dir`, or in its newest run folder."""
    if inherited := os.environ.get("ZOO_RESUME"):  # a process that a run started for another device
        checkpoint, folder = Path(inherited), Path(os.environ["ZOO_RUN_DIR"])
        return Resume(folder, checkpoint if checkpoint.suffix else None)
    folder = Path(run_dir) if run_dir else newest_run(label)
    if folder is None or not folder.is_dir():
        return Resume(folder, notes=[f"There is no run of {label} to go on with yet: this is the first."])
    checkpoint, problems = last_good(folder)
    if checkpoint is not None:
        notes = [*problems, f"Going on from {checkpoint}."]
    else:
        notes = [*problems, f"There is no whole checkpoint in {folder}: the run starts again from the beginning."]
    return Resume(folder, checkpoint, notes)


def newest_run(label: str, root: Path = Path("runs")) -> Path | None:
    """The newest run folder of a recipe (folders are named by date and time); None if there is none."""
    folders = [path for path in (root / label).glob("*") if path.is_dir()]
    return max(folders, key=lambda path: path.name, default=None)


def last_good(run: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a line on each newer one that is not; None if there is none."""
    from zoo.callbacks.resumable import file_position

    files = {path: file_position(path) for path in (run / "checkpoints").glob("*.ckpt")}
    ordered = sorted((path for path, where in files.items() if where), key=lambda path: files[path] or (), reverse=True)
    ordered += [path for path in files if path.name == "last.ckpt" and not ordered]
    problems = []
    for path in ordered:
        problem = damage(path)
        if problem is None:
            return path, problems
        problems.append(problem)
    return None, problems


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint of ours, in one line; None if every byte of it is as it was written."""
    if path.is_dir():  # shards of FSDP: whole if its metadata is, which is written last
        return None if (path / ".metadata").is_file() else f"{path} is incomplete."
    try:
        checkpoint = read_checkpoint(path)
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except ZooError as error:
        return str(error).split(": download")[0] + "."
    except (OSError, zipfile.BadZipFile) as error:
        return f"{path} is damaged ({error})."
    if broken:
        return f"{path} is damaged ({broken} in it has changed)."
    if not isinstance(checkpoint, dict) or "optimizer_states" not in checkpoint:
        return f"{path} holds weights alone."
    return None

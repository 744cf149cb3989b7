"""Where callbacks write."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer


def run_folder(trainer: Trainer) -> Path:
    """The first logger's folder, else the trainer's root. Unlike `trainer.log_dir` it waits for no other rank."""
    return Path(getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir)

"""A trainer within a training: for comparisons that callbacks make when the main run ends."""

from __future__ import annotations

from typing import Any

from lightning import Trainer


def quiet_trainer(**arguments: Any) -> Trainer:
    """A Trainer on one device that writes and prints nothing."""
    defaults: dict[str, Any] = dict(
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return Trainer(**(defaults | arguments))

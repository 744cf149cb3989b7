"""A trainer within a training: for comparisons that callbacks make when the main run ends."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Trainer


@contextmanager
def silence() -> Iterator[None]:
    """Within it, Lightning says neither what devices there are nor why a training stopped, and nobody warns."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def quiet_trainer(**arguments: Any) -> Trainer:
    """A Trainer on one device that writes nothing; build and use it within `silence`, and it prints nothing either."""
    defaults: dict[str, Any] = dict(
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    return Trainer(**(defaults | arguments))

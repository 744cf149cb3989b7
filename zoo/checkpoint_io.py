"""Checkpoints that are there whole or not at all, and that are read without running anything in them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import TorchCheckpointIO

from zoo import hub
from zoo.checkpoint_files import read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames: a full disk or a kill while saving leaves the previous file as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        if "://" in str(path):  # object stores replace as a whole by themselves
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        partial = target.with_name(f".{target.name}.partial")
        try:
            super().save_checkpoint(checkpoint, partial, storage_options)
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """As `zoo.checkpoint_files.read_checkpoint`, from a link too.

        Lightning itself would run what a checkpoint behind a link holds, and cache it under the link's last part.
        """
        if str(path).startswith(("http://", "https://")):
            return read_checkpoint(hub.fetch_url(str(path)))
        if "://" in str(path):
            return super().load_checkpoint(path, map_location or "cpu", weights_only=True)
        return read_checkpoint(path)

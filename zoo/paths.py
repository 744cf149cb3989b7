"""Where recipes, manifests and the weight cache lie: in a clone or in an installed wheel."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _data_dir(name: str) -> Path:
    installed = _PACKAGE / "_data" / name  # a wheel carries them here (pyproject.toml, force-include)
    return installed if installed.is_dir() else _PACKAGE.parent / name


def recipes_dir() -> Path:
    """The folder `recipes/`, one subfolder a paper."""
    return _data_dir("recipes")


def checkpoints_dir() -> Path:
    """The folder `checkpoints/`, one subfolder of manifests (and small weights) a paper."""
    return _data_dir("checkpoints")


def cache_dir() -> Path:
    """Where fetched weights are kept: `$ZOO_CACHE`, else `$XDG_CACHE_HOME/zoo`, else `~/.cache/zoo`."""
    if root := os.environ.get("ZOO_CACHE"):
        return Path(root).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "zoo"

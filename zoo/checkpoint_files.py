"""Reading the files that weights come in, safely: nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import ZooError

if TYPE_CHECKING:
    from torch import Tensor

_STATE_KEYS = ("state_dict", "model")  # in this order: official DropPos files hold the architecture's name as "model"
_LFS_POINTER = b"version https://git-lfs"


def file_kind(path: str | Path) -> str:
    """ "safetensors" or "pickle", by content. Raises `ZooError` that says what else the file is."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ZooError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not head:
        raise ZooError(f"{path} is empty: download it again.")
    if head.startswith(_LFS_POINTER):
        raise ZooError(f"{path} is a git-lfs pointer, not the weights themselves: run `git lfs pull` where it is from.")
    if looks_like_page(head):
        raise ZooError(f"{path} is a web page, not weights: the download was answered with a page, often a login.")
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
        return "pickle"
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "pickle"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        _check_length(path)
        return "safetensors"
    raise ZooError(f"{path} is no checkpoint: neither safetensors nor a file that torch.save wrote.")


def looks_like_page(head: bytes) -> bool:
    """Whether a file that begins like this is HTML or XML."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<script", b"<meta", b"<!--"))


def _check_length(path: Path) -> None:
    """Holds the length of a safetensors file against its header, which says where the last tensor ends."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        whole = 8 + size + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ZooError(f"{path} is damaged or truncated (its header cannot be read): download it again.") from error
    if path.stat().st_size != whole:
        found = path.stat().st_size
        raise ZooError(f"{path} is damaged or truncated ({found} bytes instead of {whole}): download it again.")


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise ZooError(f"{path} is truncated (its end is missing) or damaged: download it again.") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ZooError(f"{path} is a TorchScript program, not a checkpoint: it would have to be executed.")
    if not any(name.endswith("data.pkl") for name in names):
        shown = ", ".join(names[:3])
        raise ZooError(f"{path} is an ordinary zip archive ({shown}…): unpack it and give the checkpoint inside.")


def read_checkpoint(path: str | Path) -> Any:
    """The whole content of a `torch.save` file, or the tensors of a safetensors file, on the CPU.

    Read with `weights_only=True`; beyond tensors and plain values only argparse and jsonargparse namespaces, paths and
    numpy scalars are allowed. Raises `ZooError` for a file that is truncated, of another kind, or holds other objects.
    """
    path = Path(path)
    if file_kind(path) == "safetensors":
        return _read_safetensors(path)
    import torch

    try:
        with torch.serialization.safe_globals(_safe_globals()):
            # Mapped, so that optimiser states beside the weights are never read from disk.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        match = re.search(r"(?:GLOBAL|class|Unsupported \w+:?) ([\w.]+\.[\w.]+)", str(error))
        what = f"an object of {match.group(1)}" if match else "objects other than tensors and plain values"
        raise ZooError(
            f"{path} is damaged or holds {what}, which is not loaded because it could run code: "
            "save its state_dict alone where you trust it."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        raise ZooError(f"{path} is damaged or truncated ({_first_line(error)}): download it again.") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in any of the usual files: safetensors, a bare state dict, `{"model": …}` as MAE writes it,
    `{"state_dict": …}` as Lightning and the official DropPos code do. DDP's `module.` prefix is taken off.

    Raises `ZooError` if the file cannot be read or holds no state dict.
    """
    return extract_state_dict(read_checkpoint(path), str(path))


def extract_state_dict(checkpoint: Any, source: str) -> dict[str, Tensor]:
    """The state dict inside a loaded checkpoint. `source` names it in errors."""
    from torch import Tensor

    if not isinstance(checkpoint, Mapping):
        raise ZooError(f"{source} holds a {type(checkpoint).__name__}, not a state dict.")
    nested = [key for key in _STATE_KEYS if isinstance(checkpoint.get(key), Mapping)]
    state = checkpoint[nested[0]] if nested else checkpoint
    strange = [
        str(key) if str(key).isprintable() else repr(key)
        for key, value in state.items()
        if not isinstance(value, Tensor) or not isinstance(key, str) or not key.isprintable()
    ]
    if strange or not state:
        inside = ", ".join(strange[:5]) or "nothing"
        raise ZooError(f"{source} holds no state dict: expected tensors by name, found {inside}.")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def save_safetensors(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Writes `state_dict` to `path`; raises `OSError` like other writers do (disk full, ...)."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # Tensors that share memory are stored one by one: safetensors refuses shared ones.
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
    try:
        save_file(tensors, path, metadata={"format": "pt"})
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o666 & ~umask)  # safetensors lets nobody but the owner read it
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code.group(1)) if code else 5, str(error), str(path)) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, or a type of number that torch does not know
        raise ZooError(f"{path} is damaged or truncated ({_first_line(error)}): download it again.") from error


def _safe_globals() -> list[Any]:
    import jsonargparse
    import numpy as np
    from numpy._core import multiarray

    scalars = [np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_]
    return [
        argparse.Namespace,
        jsonargparse.Namespace,
        collections.defaultdict,
        dict,
        list,
        pathlib.PosixPath,
        pathlib.PurePosixPath,
        np.dtype,
        multiarray.scalar,
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        *scalars,
        *{type(np.dtype(scalar)) for scalar in scalars},
    ]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__

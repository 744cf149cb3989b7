"""`zoo.load`: from a name, a manifest, a checkpoint or a run folder to a model; and the way back, `export`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from zoo import hub
from zoo.catalog import NAME, Manifest, info, list_models, read_manifest
from zoo.checkpoint_files import extract_state_dict, read_checkpoint, read_state_dict, save_safetensors
from zoo.errors import ZooError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.module import ZooModule

Weights = str | os.PathLike[str] | Mapping[str, "Tensor"]


def load(
    name: str | os.PathLike[str], *, weights: Weights | None = None, pretrained: bool = True, **overrides: Any
) -> ZooModule:
    """A model of the zoo in eval mode, on the CPU.

    Args:
        name: a catalogue name (`zoo.list_models()`), a manifest (`.yaml`), a training checkpoint (`.ckpt`) or the
            folder of a run (its last checkpoint, or the best one where `report.json` names it).
        weights: other weights for the same network: a path, a URL or a state dict, in our key names or the official
            ones (told apart by the keys).
        pretrained: False gives the same network with random weights; nothing is downloaded.
        overrides: arguments of the model's class, instead of those that the manifest or checkpoint holds.

    Raises `ZooError` for an unknown name or argument (with the nearest ones), for weights of another architecture
    (naming the keys), and as `zoo.hub.fetch` does.
    """
    if weights is not None and not pretrained:
        raise ZooError("pretrained=False asks for random weights, so `weights` cannot be given with it.")
    checkpoint = _find_checkpoint(name)
    if checkpoint is not None:
        found = read_training_checkpoint(checkpoint)
        class_path, init_args, origin = found.class_path, found.init_args, str(checkpoint)
    else:
        manifest = find_manifest(name)
        class_path, init_args, origin = manifest.class_path, manifest.init_args, manifest.name
    model = build(class_path, {**init_args, **overrides}, origin)
    if weights is not None:
        state, source = _read_weights(weights)
        model.load_weights(state, source)
    elif pretrained and checkpoint is not None:
        model.load_weights(found.state_dict, str(checkpoint))
    elif pretrained:
        model.load_weights(read_state_dict(hub.fetch(manifest)), f"The weights of {manifest.name}")
    return model.eval()


def add(name: str | os.PathLike[str], file: str | os.PathLike[str]) -> Path:
    """Gives a model the weights file that the user downloaded by hand; `load` works from then on.

    The file is read safely, must fit the model's architecture exactly, and its sha256 must match the one that is
    published or was seen before. A copy under our names goes into the cache; its path is returned.

    Raises `ZooError` if any of this fails; the cache is then as it was.
    """
    manifest, path = find_manifest(name), Path(file).expanduser()
    if manifest.source.kind == "file":
        raise ZooError(f"{manifest.name} keeps its weights beside its manifest: there is nothing to add.")
    state = read_state_dict(path)
    model = build(manifest.class_path, manifest.init_args, manifest.name)
    model.load_weights(state, str(path))
    return hub.store_converted(manifest, path, model.state_dict())


def export(
    checkpoint: str | os.PathLike[str],
    name: str,
    folder: str | os.PathLike[str],
    *,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    title: str | None = None,
    trained_on: str | None = None,
    license: str | None = None,
    force: bool = False,
) -> Path:
    """Turns a training checkpoint or run folder into `folder/name.safetensors` and the manifest `folder/name.yaml`.

    The pair is loaded once before this returns. Returns the manifest's path, which `load` takes.
    Raises `ZooError` if a file of that name exists (unless `force`) or the checkpoint is not one of the zoo's.
    """
    import torch
    import yaml

    path = _find_checkpoint(checkpoint)
    if path is None:
        raise ZooError(f"{os.fspath(checkpoint)} is neither a training checkpoint (.ckpt) nor a run folder.")
    if not NAME.fullmatch(name):
        raise ZooError(f"A model's name is letters, digits, '.', '_' and '-' only, not {name!r}.")
    target = Path(folder).expanduser()
    manifest_path, weights_path = target / f"{name}.yaml", target / f"{name}.safetensors"
    for existing in (manifest_path, weights_path):
        if existing.exists() and not force:
            raise ZooError(f"{existing} exists already: choose another name, or overwrite it with --force.")
    found = read_training_checkpoint(path)
    model = build(found.class_path, found.init_args, str(path))
    model.load_weights(found.state_dict, str(path))
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    state = {key: value.to(wanted) if value.is_floating_point() else value for key, value in model.state_dict().items()}
    parts = found.class_path.split(".")
    values: dict[str, Any] = {
        "name": name,
        "title": title or f"{parts[-1]} from {path.name}",
        "paper": parts[2] if parts[:2] == ["zoo", "papers"] else "own",
        "class_path": found.class_path,
        "init_args": found.init_args,
        "source": {"kind": "file", "filename": weights_path.name},
        "sha256": None,
        "format": "zoo",
        "license": license,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained_on": trained_on,
        "verified": True,
        "notes": f"Exported from {path.name} after {found.epochs} epochs, {found.steps} steps; stored as {dtype}.",
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
        new = weights_path.with_name(weights_path.name + ".new")
        try:
            save_safetensors(state, new)
            values["sha256"] = hub.sha256_of(new)
            os.replace(new, weights_path)
        finally:
            new.unlink(missing_ok=True)
        new = manifest_path.with_name(manifest_path.name + ".new")
        try:
            new.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
            os.replace(new, manifest_path)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ZooError(f"Cannot write to {target}: {error.strerror or error}.") from error
    load(manifest_path)
    return manifest_path


# ---------------------------------------------------------------------- parts


@dataclass(frozen=True)
class TrainingCheckpoint:
    """What a checkpoint of a ZooModule holds for loading it: class, arguments, weights, and how far training was."""

    class_path: str
    init_args: dict[str, Any]
    state_dict: dict[str, Tensor]
    epochs: int
    steps: int


def find_manifest(name: str | os.PathLike[str]) -> Manifest:
    """The manifest behind a catalogue name or the path of a manifest file."""
    text = os.fspath(name)
    if text.endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ZooError(f"There is no manifest {text!r}.")
        return read_manifest(path)
    if text not in list_models() and Path(text).expanduser().exists():
        raise ZooError(
            f"{text} is no model: give a catalogue name, a manifest (.yaml), a checkpoint (.ckpt) or a run folder; "
            "bare weights go with the model that they belong to: zoo.load(NAME, weights=FILE)."
        )
    return info(text)


def build(class_path: str, init_args: Mapping[str, Any], origin: str) -> ZooModule:
    """The model with random weights. Raises `ZooError` for arguments that its class does not have or cannot take."""
    from zoo.module import ZooModule, import_class

    cls = import_class(class_path)
    if not (isinstance(cls, type) and issubclass(cls, ZooModule)):
        raise ZooError(f"{origin}: {class_path} is not a ZooModule.")
    parameters = list(inspect.signature(cls).parameters.values())
    known = [parameter.name for parameter in parameters]
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        for key in init_args:
            if key not in known:
                raise ZooError(f"{origin}: {cls.__name__} has no argument {key!r}.{did_you_mean(key, known)}")
    try:
        return cls(**init_args)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ZooError(f"{origin}: {cls.__name__} cannot be built with these arguments: {reason}.") from error


def read_training_checkpoint(path: Path) -> TrainingCheckpoint:
    """Reads a Lightning checkpoint of a ZooModule. Raises `ZooError` if it is another kind of file."""
    checkpoint = read_checkpoint(path)
    if not isinstance(checkpoint, Mapping) or "class_path" not in (checkpoint.get("zoo") or {}):
        raise ZooError(
            f"{path} does not say which model it belongs to: it was not saved by a module of the zoo. "
            "Load its weights into the model that you mean: zoo.load(NAME, weights=FILE)."
        )
    args = checkpoint.get("hyper_parameters") or {}
    # LightningCLI adds keys of its own, which start with an underscore.
    init_args = {key: _plain(value) for key, value in args.items() if not key.startswith("_")}
    return TrainingCheckpoint(
        class_path=checkpoint["zoo"]["class_path"],
        init_args=init_args,
        state_dict=extract_state_dict({"state_dict": checkpoint.get("state_dict")}, str(path)),
        epochs=int(checkpoint.get("epoch", -1)) + 1,
        steps=int(checkpoint.get("global_step", 0)),
    )


def _find_checkpoint(name: str | os.PathLike[str]) -> Path | None:
    """The training checkpoint that `name` means, if it is a path to one or to a run folder."""
    path = Path(name).expanduser()
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise ZooError(f"There is no checkpoint {os.fspath(name)!r}.")
        return path
    if not path.is_dir() or os.fspath(name) in list_models():
        return None
    if (chosen := _reported(path)) is not None:
        return chosen
    last = path / "checkpoints" / "last.ckpt"
    if last.is_file():
        return last
    found = [*path.glob("checkpoints/*.ckpt"), *path.glob("*.ckpt")]
    if not found:
        raise ZooError(f"{path} is a folder without a checkpoint: looked for checkpoints/last.ckpt and *.ckpt in it.")
    return max(found, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _reported(run: Path) -> Path | None:
    """The checkpoint that a run's report is about (`zoo.callbacks.report`): its best epoch."""
    import json

    try:
        name = json.loads((run / "report.json").read_text(encoding="utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = run / name if isinstance(name, str) else None
    return found if found is not None and found.is_file() else None


def _read_weights(weights: Weights) -> tuple[dict[str, Tensor], str]:
    if isinstance(weights, Mapping):
        return extract_state_dict(weights, "The given state dict"), "The given weights"
    text = os.fspath(weights)
    if text.startswith(("https://", "http://")):
        return read_state_dict(hub.fetch_url(text)), text
    path = Path(text).expanduser()
    if not path.exists():
        raise ZooError(f"There is no weights file {text!r}.")
    return read_state_dict(path), text


def _plain(value: Any) -> Any:
    """Hyper-parameters as YAML knows them."""
    if hasattr(value, "as_dict"):  # jsonargparse's Namespace
        value = value.as_dict()
    elif type(value).__name__ == "Namespace":
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

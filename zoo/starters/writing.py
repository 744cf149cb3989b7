"""Writing a starter: the room's recipe with the user's model and folder in it, comments on what to change, a README."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from zoo import catalog
from zoo.catalog import Manifest
from zoo.errors import ZooError
from zoo.recipes import find_recipe, read_recipe
from zoo.starters.catalogue import find_starter, fitting_models
from zoo.starters.starter import Starter, Variant

PATIENCE = 10


def write_starter(task: str, model: str, dest: Path, *, data: Path | None = None, force: bool = False) -> list[Path]:
    """Writes `dest/recipe.yaml` and `dest/README.md` for a task, and makes the data folder if there is none.

    Args:
        task: a name in `STARTERS`.
        model: a name in the catalogue, a manifest, a checkpoint or a run folder.
        data: the user's data, if it lies elsewhere than in `dest/data`.
        force: overwrite a starter that is there.

    Returns the two files. Raises `ZooError` for a model that does not fit, or a folder that has a starter already.
    """
    starter = find_starter(task)
    class_path, init_args = _describe(model)
    variant = starter.variant(class_path)
    if variant is None:
        fits = fitting_models(starter)
        names = ", ".join(fits[:4]) + (f" and {len(fits) - 4} more" if len(fits) > 4 else "")
        raise ZooError(f"{model} ({class_path.rsplit('.', 1)[-1]}) does not fit {task}: it takes {names}.")
    files = [dest / "recipe.yaml", dest / "README.md"]
    for file in files:
        if file.exists() and not force:
            raise ZooError(f"{file} exists already: choose another folder, or overwrite it with --force.")
    root = (data or dest / starter.root).expanduser().resolve()
    if data is not None and not root.is_dir():
        raise ZooError(f"There is no data folder {data}.")
    config = starter_config(starter, variant, model, init_args, str(root))
    try:
        root.mkdir(parents=True, exist_ok=True)
        dest.mkdir(parents=True, exist_ok=True)
        for file, text in zip(
            files, (_recipe_text(starter, config), _readme(starter, model, config, files[0], root)), strict=True
        ):
            new = file.with_name(f".{file.name}.new")
            new.write_text(text, encoding="utf-8")
            os.replace(new, file)
    except OSError as error:
        raise ZooError(f"Cannot write to {dest}: {error.strerror or error}.") from error
    read_recipe(files[0])  # every key is one that the classes know
    return files


def _describe(model: str) -> tuple[str, dict[str, Any]]:
    """Class path and arguments of a model, without building it."""
    if model in catalog.list_models():
        manifest: Manifest = catalog.info(model)
        return manifest.class_path, manifest.init_args
    from zoo.loading import _find_checkpoint, find_manifest, read_training_checkpoint

    checkpoint = _find_checkpoint(model)
    if checkpoint is None:
        manifest = find_manifest(model)
        return manifest.class_path, manifest.init_args
    found = read_training_checkpoint(checkpoint)
    return found.class_path, found.init_args


def starter_config(
    starter: Starter, variant: Variant, model: str, init_args: dict[str, Any], root: str
) -> dict[str, Any]:
    """The room's recipe with the starter's settings: model, data folder, best epoch, early end, report."""
    from zoo.module import import_class  # torch

    config = read_recipe(find_recipe(variant.recipe))
    header = config["recipe"]
    header.pop("smoke", None)
    header["title"] = f"Your own data: {starter.title}"
    header["time"], header["metric"] = "see zoo check", starter.monitor
    if variant.data is not None:
        config["data"] = {"class_path": variant.data[0], "init_args": dict(variant.data[1])}
    header["next"] = [
        f"zoo predict {{run}} {starter.files} -o {starter.output}",
        "zoo export {run} --name my-model -o weights/",
    ]
    settings: dict[str, Any] = {"data.root": root, f"model.{variant.model_key}": _as_given(model)}
    if "model.tuning.mode" in starter.comments:
        settings["model.tuning.mode"] = "full"
    settings |= {key: _filled(value, root) for key, value in variant.settings.items()}
    for key, source in variant.from_model.items():
        name, least = source if isinstance(source, tuple) else (source, None)
        if (value := init_args.get(name)) is not None:
            settings[key] = value if least is None else max(value, least)
    length, most = config["data"]["init_args"].get("max_length"), init_args.get("max_positions")
    if length and most:
        settings["data.max_length"] = min(length, most)
    for key, value in settings.items():
        _set(config, key, value)
    trainer = config["trainer"]
    trainer["devices"] = trainer.get("devices", "auto")
    kept = [c for c in trainer.get("callbacks") or [] if not c["class_path"].endswith("ModelCheckpoint")]
    figures = "zoo.callbacks.figures.Figures"
    if hasattr(import_class(config["model"]["class_path"]), "figures") and figures not in str(kept):
        kept.append({"class_path": figures})
    best = {"monitor": starter.monitor, "mode": starter.mode}
    trainer["callbacks"] = [
        *kept,
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {**best, "filename": "best", "save_last": True},
        },
        {
            "class_path": "lightning.pytorch.callbacks.EarlyStopping",
            "init_args": {**best, "patience": PATIENCE, "strict": False},
        },
        {"class_path": "zoo.callbacks.report.Report"},
    ]
    return config


def _as_given(model: str) -> str:
    """Run folders and files by their whole path: the recipe runs from anywhere."""
    path = Path(model).expanduser()
    return str(path.resolve()) if model not in catalog.list_models() and path.exists() else model


def _filled(value: Any, root: str) -> Any:
    return value.replace("{root}", root) if isinstance(value, str) else value


def _set(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, with `init_args` between a class and its arguments."""
    head, *rest = key.split(".")
    section = config[head]
    if head in ("model", "data"):
        section = section.setdefault("init_args", {})
    for part in rest[:-1]:
        section = section.setdefault(part, {})
    section[rest[-1]] = value


# ---------------------------------------------------------------------- text


def _recipe_text(starter: Starter, config: dict[str, Any]) -> str:
    """YAML with a header that lists what to change, and a mark beside each of these lines."""
    lines = [f"# Your own data: {starter.title}. Things to change are marked with <- and a number:"]
    lines += [f"#   {n}. {key}: {text}" for n, (key, text) in enumerate(starter.comments.items(), 1)]
    lines += ["# Any other line can be changed as well; a misspelt one is named before anything starts."]
    numbers = {key: n for n, key in enumerate(starter.comments, 1)}
    path: list[tuple[int, str]] = []
    for line in yaml.safe_dump(config, sort_keys=False, width=10_000, allow_unicode=True).splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        while path and path[-1][0] >= indent:
            path.pop()
        if ":" in text and not text.startswith("-"):
            path.append((indent, text.split(":")[0]))
            key = ".".join(name for _, name in path if name != "init_args")
            if key in numbers:
                line = f"{line}  # <- {numbers.pop(key)}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _readme(starter: Starter, model: str, config: dict[str, Any], recipe: Path, root: Path) -> str:
    changes = "\n".join(f"{n}. `{key}`: {text}" for n, (key, text) in enumerate(starter.comments.items(), 1))
    warm = " --model.warmup_epochs 0" if config["model"]["init_args"].get("warmup_epochs") else ""
    because = " (the rate would still be rising when so short a run ends)" if warm else ""
    return f"""\
# {starter.title[:1].upper()}{starter.title[1:]}

Fine-tunes `{model}` on your own data. Three commands:

    zoo check {recipe}
    lightning run {recipe}
    zoo predict RUN {starter.files} -o {starter.output}

## 1. Where the data goes

Into `{root}` (or change `data.root`):

{starter.layout}

## 2. Check

`zoo check` reads all of it and says in plain words what it found: how much of what, files that cannot be read, values
that cannot be, the same file on both sides of the split; then it measures one training step. Exit code 2 means that
something must be mended first.

## 3. What to change in `recipe.yaml`

{changes}

Each can also be given on the command line. A first try of a few minutes:

    lightning run {recipe} --trainer.max_epochs 3{warm}

to see that all goes through{because}.

## 4. Run

The run's folder (printed at the start, below `runs/`) ends up with `report.html`, one file that holds everything:
metrics with confidence intervals, calibration, pictures, curves and settings. A killed run goes on with `--resume`.

{_folds_text(config, recipe)}
## 5. Use it

`zoo predict RUN {starter.files} -o {starter.output}` runs the best epoch on new files. `zoo export RUN --format onnx -o
model.onnx` makes a file that runs without this library; `zoo.load("RUN")` gives the model in Python.
"""


def _folds_text(config: dict[str, Any], recipe: Path) -> str:
    """How to cross-validate, or that it cannot be done."""
    if config["data"]["init_args"].get("dataset") == "identities":
        return "This task has no folds: keep a test set apart for the numbers that you publish.\n"
    command = f"    zoo kfold {recipe} --folds 5"
    return f"{command}\n\ntrains once for each fold and gives mean and standard deviation over them.\n"

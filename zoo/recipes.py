"""Finding a recipe and checking its keys before anything is built, so that a misspelt one gets one clear line."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import ZooError, did_you_mean
from zoo.paths import recipes_dir

HEADER = "recipe"
HEADER_FIELDS = ("title", "stage", "subcommand", "hardware", "time", "metric", "next", "smoke")
TOP_LEVEL = (HEADER, "seed_everything", "trainer", "model", "data", "ckpt_path")
SUBCOMMANDS = ("fit", "validate", "test", "predict")


def recipe_names() -> list[str]:
    """Names of the recipes that come with the zoo: `<paper>/<recipe>`."""
    root = recipes_dir()
    return sorted(f"{path.parent.name}/{path.stem}" for path in root.glob("*/*.yaml"))


def find_recipe(name: str) -> Path:
    """The YAML behind a catalogue name (`droppos/quickstart`) or a path; `ZooError` with the nearest names if none."""
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ZooError(f"There is no recipe file {name!r}.")
    if name in recipe_names():
        return recipes_dir() / f"{name}.yaml"
    raise ZooError(f"There is no recipe {name!r}.{did_you_mean(name, recipe_names())} `lightning run` lists them all.")


def read_recipe(path: Path) -> dict[str, Any]:
    """Parses a recipe and checks every key of it; `ZooError` names the file and the first wrong key."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ZooError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(config, dict):
        raise ZooError(f"{path} is no recipe: it should hold the keys {', '.join(TOP_LEVEL)}.")
    try:
        problem = next(_problems(config), None)
    except ZooError as error:  # a class that cannot be imported
        problem = str(error)
    if problem:
        raise ZooError(f"{path}: {problem}")
    return config


def check_override(config: dict[str, Any], key: str) -> None:
    """Checks a dotted command-line key (`model.lr`, `trainer.max_epochs`) against the recipe's classes."""
    head, *rest = [part for part in key.split(".") if part != "init_args"]
    if head not in TOP_LEVEL or head == HEADER:
        raise ZooError(f"--{key}: there is no setting {head!r}.{did_you_mean(head, TOP_LEVEL[1:])}")
    if not rest or rest[0] == "class_path":
        return
    if head == "trainer":
        known = _trainer_arguments()
    elif head in ("model", "data"):
        known = _arguments(config.get(head, {}).get("class_path", ""))
    else:
        raise ZooError(f"--{key}: {head} takes a value of its own, nothing below it.")
    if known is not None and rest[0].rstrip("+") not in known:
        raise ZooError(f"--{key}: {head} has no setting {rest[0]!r}.{did_you_mean(rest[0], known)}")


def _problems(config: dict[str, Any]) -> Iterator[str]:
    for key in config:
        if key not in TOP_LEVEL:
            yield f"unknown key {key!r}.{did_you_mean(key, TOP_LEVEL)}"
    header = config.get(HEADER) or {}
    for key in header:
        if key not in HEADER_FIELDS:
            yield f"unknown key 'recipe.{key}'.{did_you_mean(key, HEADER_FIELDS)}"
    if header.get("subcommand", "fit") not in SUBCOMMANDS:
        yield f"recipe.subcommand is one of {', '.join(SUBCOMMANDS)}, not {header['subcommand']!r}."
    if "model" not in config:
        yield "there is no model."
    for section in ("model", "data"):
        if section in config:
            yield from _class_problems(config[section], section)
    trainer = config.get("trainer") or {}
    known = _trainer_arguments()
    for key in trainer:
        if key not in known:
            yield f"unknown key 'trainer.{key}'.{did_you_mean(key, known)}"
    callbacks = trainer.get("callbacks") or []
    for index, callback in enumerate(callbacks if isinstance(callbacks, list) else [callbacks]):
        yield from _class_problems(callback, f"trainer.callbacks[{index}]")


def _class_problems(section: Any, where: str) -> Iterator[str]:
    if not isinstance(section, dict) or "class_path" not in section:
        yield f"{where} needs a class_path and, if wanted, init_args."
        return
    for key in section:
        if key not in ("class_path", "init_args"):
            yield f"unknown key '{where}.{key}'.{did_you_mean(key, ['class_path', 'init_args'])}"
    known = _arguments(section["class_path"])
    for key in section.get("init_args") or {}:
        if known is not None and key not in known:
            yield f"unknown key '{where}.{key}'.{did_you_mean(key, known)}"


def _arguments(class_path: str) -> list[str] | None:
    """Constructor arguments of a class; None if it forwards arbitrary ones."""
    from zoo.module import import_class

    parameters = inspect.signature(import_class(class_path).__init__).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.name != "self"]


def _trainer_arguments() -> list[str]:
    from lightning import Trainer

    return [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]

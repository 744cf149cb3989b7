"""The commands that pages and recipes show: found, and parsed without running anything."""

from __future__ import annotations

import itertools
import re
import shlex

import typer
import yaml
from support_contract import printed

from zoo import catalog
from zoo.cli.app import app
from zoo.cli.app import main as zoo_main

# What a reader puts in the place of a word in capitals where the command line wants a number.
_NUMBERS = {"N": "2", "GPUS": "2", "NODES": "2", "EPOCHS": "2"}
_NAMED = ("info", "cp", "download", "verify", "add", "embed")  # sub-commands whose first argument is a name


def documented_commands(text: str) -> list[str]:
    """The `lightning run` and `zoo` commands in a page's indented and fenced code, without comments, in order."""
    text = re.sub(r"\\\\\n\s*", " ", text)
    found = []
    for line in re.findall(r"(?m)^(?: {4,}|\t)?((?:lightning run|zoo [a-z]|pip install|torchrun|srun).*)$", text):
        for part in re.split(r"&&|;|\|", line):
            match = re.search(r"(?:lightning run|\bzoo [a-z]+)\b.*", part.split(" #")[0])
            if match and not part.strip().startswith("pip"):
                found.append(" ".join(match.group().split()))
    return found


def check_command(command: str) -> None:
    """Parses a documented command as its reader would type it; fails with what is wrong. Copies of recipes are made."""
    words = [_NUMBERS.get(word, word) for word in shlex.split(command)]
    if words[0] == "lightning":
        _check_run(command, words[2:])
    else:
        _check_zoo(command, words[1:])


def _check_run(command: str, words: list[str]) -> None:
    if not words or words[0].isupper():
        return
    words = [word for word in words if word not in ("--dry-run", "--print-config", "--resume")]
    for option, value in itertools.pairwise(words):
        if option == "--model.backbone" and re.fullmatch(r"[a-z0-9]+(-[a-z0-9.]+)+", value):
            assert value in catalog.list_models(), f"{command}: there is no model {value}"
    out = printed("run", *words, "--print-config")
    config = yaml.safe_load(out) if out else None
    assert config, f"does not parse: {command}"


def _check_zoo(command: str, words: list[str]) -> None:
    group = typer.main.get_command(app)
    context = group.make_context("zoo", list(words))
    name, sub, rest = group.resolve_command(context, words)  # type: ignore[attr-defined]
    arguments = sub.make_context(name, rest, parent=context)
    first = next((word for word in rest if not word.startswith("-")), "")
    known = [*catalog.list_models(), *catalog.list_recipes()]
    if name in _NAMED and re.fullmatch(r"[a-z0-9_]+[-/][\w./-]+", first) and not first.startswith("runs/"):
        assert first in known, f"{command}: there is no {first}"
    if name == "cp" or (name == "new" and "--from" in words and words[-1].islower()):
        zoo_main(words)  # so that a later command finds the copy
    assert arguments is not None

"""`lightning run RECIPE`: one command from a YAML to a trained, scored and documented model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from zoo.errors import ZooError

USAGE = """\
Usage: lightning run RECIPE [--any.dotted.key VALUE ...] [options]

Runs a recipe of the zoo, or a YAML file of your own.

  lightning run                                   list the recipes
  lightning run droppos/quickstart                the two-minute tour, nothing to download
  lightning run droppos/pretrain_vitb16 --data.root /data/imagenet --trainer.devices 8
  lightning run my_recipe.yaml --model.lr 1e-4 --trainer.max_epochs 20
  lightning run droppos/pretrain_vitb16 --resume

Options:
  --print-config     print the recipe with every default filled in, and stop
  --dry-run          build everything, run two batches, print parameters, memory and time, and stop
  --run-dir DIR      where to write (default: runs/RECIPE/DATE-TIME)
  --resume           go on where the newest run of the recipe (or the run in --run-dir) was interrupted, from its last
                     whole checkpoint and with its settings; settings given here override them
  --ckpt_path FILE   go on from a checkpoint
  -h, --help         this text; after a recipe: every key that can be set

`zoo cp RECIPE my_recipe.yaml` gives you a copy to edit. Exit codes: 0 done, 2 something to correct, 1 a crash.
"""


def main(argv: list[str] | None = None) -> None:
    """Console script `lightning`. What is not a recipe of the zoo goes on to the platform SDK, if that is installed."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] != ["run"]:
            _hand_over(argv)
        elif len(argv) == 1:
            _list_recipes()
        elif argv[1] in ("-h", "--help"):
            print(USAGE, end="")
        else:
            _run(argv[1], argv[2:])
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _hand_over(argv: list[str]) -> None:
    from importlib.metadata import entry_points

    for entry in entry_points(group="console_scripts", name="lightning"):
        if entry.dist is not None and entry.dist.name.replace("_", "-") == "lightning-sdk":
            sys.exit(entry.load()())
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    raise ZooError(
        f"This `lightning` knows one command, `lightning run RECIPE`, not {argv[0]!r}. "
        "(The Lightning platform's own commands need `pip install lightning-sdk`.)"
    )


def _list_recipes() -> None:
    from zoo.cli.app import main as zoo_main

    zoo_main(["ls", "recipes"])
    print("\nRun one: lightning run NAME    Help: lightning run --help")


def _take_flag(args: list[str], *names: str) -> bool:
    found = [arg for arg in args if arg in names]
    for arg in found:
        args.remove(arg)
    return bool(found)


def take_value(args: list[str], name: str) -> str | None:
    """Takes `name VALUE` or `name=VALUE` out of `args`; None if it is not there."""
    for index, arg in enumerate(args):
        if arg == name and index + 1 < len(args):
            del args[index]
            return args.pop(index)
        if arg.startswith(f"{name}="):
            return args.pop(index).split("=", 1)[1]
    return None


def _run(name: str, args: list[str]) -> None:
    from zoo.recipes import find_recipe, read_recipe

    path = find_recipe(name)
    args = list(args)
    print_config = _take_flag(args, "--print-config", "--print_config")
    dry_run = _take_flag(args, "--dry-run", "--dry_run")
    run_dir = take_value(args, "--run-dir")
    label = path.stem if name.endswith((".yaml", ".yml")) else name
    resume = None
    if _take_flag(args, "--resume"):
        if any(arg.split("=")[0] == "--ckpt_path" for arg in args):
            raise ZooError("--resume finds the checkpoint by itself: give either it or --ckpt_path.")
        from zoo.resume import find_resume

        resume = find_resume(label, run_dir)
        run_dir = str(resume.folder) if resume.folder else None
        path = resume.config or path
    config = read_recipe(path)
    check_arguments(config, args)

    from zoo.cli.runner import execute

    execute(path, config, args, label=label, run_dir=run_dir, print_config=print_config, dry_run=dry_run, resume=resume)


def check_arguments(config: dict[str, Any], args: list[str]) -> None:
    """Checks overrides `--any.key VALUE` against a recipe; `ZooError` names the first that is wrong."""
    from zoo.recipes import check_override

    for arg in args:
        if arg.startswith("--") and arg != "--help":
            check_override(config, arg[2:].split("=", 1)[0])
        elif not arg.startswith("-") and args[0] == arg:
            raise ZooError(f"Unexpected {arg!r} after the recipe: settings are written --any.key VALUE.")


def new_run_dir(label: str, run_dir: str | None) -> Path:
    """The folder that a run writes to; the processes that a run starts for other devices inherit it."""
    from datetime import datetime

    inherited: Any = os.environ.get("ZOO_RUN_DIR")
    if inherited and "LOCAL_RANK" in os.environ:
        return Path(inherited)
    if run_dir is None:
        stem = Path("runs") / label / datetime.now().strftime("%Y%m%d-%H%M%S")
        path, count = stem, 1
        while path.exists():
            count += 1
            path = stem.with_name(f"{stem.name}-{count}")
    else:
        path = Path(run_dir)
    os.environ["ZOO_RUN_DIR"] = str(path.resolve())
    return path


if __name__ == "__main__":
    main()

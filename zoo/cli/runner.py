"""Builds what a recipe describes with LightningCLI and runs it."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.callbacks.completed import CompletedRun
from zoo.callbacks.dry_run import DryRun
from zoo.callbacks.resumable import KEY, ResumableCheckpoint, Stopped
from zoo.callbacks.seeding import SeedEachStep
from zoo.checkpoint_files import read_checkpoint
from zoo.checkpoint_io import AtomicCheckpointIO
from zoo.cli.run import new_run_dir, take_value
from zoo.errors import ZooError
from zoo.fsdp import register_fsdp2
from zoo.loggers import MetricsCSV
from zoo.precision import choose_precision, find_device
from zoo.resume import Resume
from zoo.strategies import ZooDDP, peer_lost

register_fsdp2()

# Lightning's hints that a user of a recipe can do nothing about.
_NOISE = (
    ".*does not have many workers.*",
    ".*DataLoader will create .* worker processes.*",
    ".*LeafSpec.*is deprecated.*",
    ".*is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists and is not empty.*",
    ".*GPU available but not used.*",
    ".*pin_memory.*no accelerator.*",
    ".*already configured with model summary.*",
    r".*module\(s\) in eval mode at the start of training.*",  # frozen parts are meant to be
    ".*your dataloader is not resumable.*",  # ResumableCheckpoint saves within epochs only where it is
)


class RecipeCLI(LightningCLI):
    """LightningCLI whose arguments come from a recipe and the command line's overrides.

    `folder` is the run folder; it is no part of the saved config, so that a saved config can be run again.
    """

    folder: Path
    logs: bool = True
    purge_step: int | None = None  # TensorBoard forgets what an interrupted run logged from here on

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--recipe", type=dict, default={}, help="what the recipe says about itself")
        parser.add_argument("--ckpt_path", type=str, default=None, help="checkpoint to go on from")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)  # the parent warns that sys.argv is there too

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        chosen = self.config.trainer
        own = {type(callback) for callback in self.config_init.trainer.callbacks or []}
        added = self.trainer_defaults["callbacks"]  # a recipe may set up one of them otherwise
        self.trainer_defaults["callbacks"] = [
            callback
            for callback in added
            if type(callback) not in own
            and not (isinstance(callback, ProgressBar) and chosen.enable_progress_bar is False)
            and not (isinstance(callback, Checkpoint) and chosen.enable_checkpointing is False)
        ]
        if chosen.default_root_dir is None:
            kwargs["default_root_dir"] = self.folder
        if self.logs and chosen.logger in (None, True):
            kwargs["logger"] = [
                TensorBoardLogger(
                    save_dir=self.folder, name="", version="", default_hp_metric=False, purge_step=self.purge_step
                ),
                MetricsCSV(self.folder),
            ]
        plugins = self.config_init.trainer.plugins or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, CompletedRun())
        if type(trainer.strategy) is DDPStrategy:
            ZooDDP.upgrade(trainer.strategy)
        elif type(trainer.strategy) is ModelParallelStrategy:
            raise ZooError(
                "Lightning's ModelParallelStrategy shares nothing out by itself: use --trainer.strategy fsdp2."
            )
        return trainer


def execute(
    path: Path,
    config: dict[str, Any],
    args: list[str],
    *,
    label: str,
    run_dir: str | None,
    print_config: bool,
    dry_run: bool,
    resume: Resume | None = None,
    step_only: bool = False,
) -> None:
    """Runs the recipe at `path` (`config` is its parsed content) with the override arguments `args`.

    `resume` says what `--resume` found. `step_only`: a dry run leaves validation out, which whole volumes make slow.
    """
    _quiet()
    asks_only = print_config or "--help" in args or "-h" in args
    folder = Path("runs") if asks_only else new_run_dir(label, run_dir)
    source, args = _resolve_precision(path, config, args, quiet=asks_only)
    args = ["--config", source, *args, *(["--print_config"] if print_config else [])]
    dry = DryRun() if dry_run else None
    callbacks = _callbacks(folder, dry)
    checkpoint = resume.checkpoint if resume else None
    purge_step = None
    if resume is not None:
        os.environ["ZOO_RESUME"] = str(checkpoint.resolve()) if checkpoint else "anew"
        purge_step = read_checkpoint(checkpoint).get(KEY, {}).get("logged_steps") if _is_file(checkpoint) else 0
        if rank_zero_only.rank == 0:
            print("\n".join(resume.notes), flush=True)
    if dry_run:
        args += ["--trainer.fast_dev_run", "2", "--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"]
    try:
        cli = _build(folder, args, callbacks, dry_run, purge_step)
        if dry is not None:
            chosen = cli.config.trainer
            dry.max_epochs, dry.max_steps = chosen.max_epochs, chosen.max_steps
            dry.limit_train_batches = chosen.limit_train_batches
            if step_only:
                cli.trainer.limit_val_batches = 0
        _go(cli, folder, dry_run, checkpoint)
    except Stopped:
        _say_stopped(folder)
    except RuntimeError as error:
        if not peer_lost(error):
            raise
        print(
            f"error: process {rank_zero_only.rank} stops: another process of this run is gone ({_first_line(error)}). "
            f"Its own output says why. Go on with --resume --run-dir {folder}.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # not through exit handlers: they would wait for the process that is gone
    except (ArgumentError, ValueError) as error:
        raise _explained(error, path) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ZooError(
            f"The disk is full: nothing more could be written to {folder}. A checkpoint that was complete "
            f"before is still there; free some space and go on with --resume --run-dir {folder}."
        ) from error


def instantiate(path: Path, config: dict[str, Any], args: list[str], folder: Path) -> RecipeCLI:
    """Model, data and trainer of a recipe, built but not run: no callbacks, no logs. Raises as a run does."""
    _quiet()
    source, args = _resolve_precision(path, config, args, quiet=True)
    args = ["--config", source, *args, "--trainer.callbacks", "null", "--trainer.enable_checkpointing", "false"]
    try:
        return _build(folder, args, [], dry_run=True, purge_step=None)
    except (ArgumentError, ValueError) as error:
        raise _explained(error, path) from error


def _build(
    folder: Path, args: list[str], callbacks: list[Callback], dry_run: bool, purge_step: int | None
) -> RecipeCLI:
    return _recipe_cli(folder, dry_run, purge_step)(
        run=False,
        args=args,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_defaults={"callbacks": callbacks},
        save_config_callback=None if dry_run else _SaveConfig,
        save_config_kwargs={"overwrite": True, "save_to_log_dir": True},
        parser_kwargs={"exit_on_error": False},
        auto_configure_optimizers=False,
    )


def _explained(error: Exception, path: Path) -> Exception:
    """What to raise for an error of the parser: the `ZooError` of a constructor that it wraps, or one line about it."""
    if cause := _zoo_error_behind(error):
        return cause
    return ZooError(f"{path}: {_reason(error)}") if isinstance(error, ArgumentError) else error


def _quiet() -> None:
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's calls, not ours
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_keep)


def _resolve_precision(path: Path, config: dict[str, Any], args: list[str], quiet: bool) -> tuple[str, list[str]]:
    """Puts what `precision: auto` means here into the recipe: (path or YAML text, arguments). Says what it chose."""
    trainer = config.get("trainer") or {}
    args = list(args)
    given = {key: take_value(list(args), f"--trainer.{key}") for key in ("precision", "accelerator")}
    precision = given["precision"] or trainer.get("precision")
    if "auto" not in (precision, trainer.get("precision")):
        return str(path), args
    take_value(args, "--trainer.precision")
    if precision == "auto":
        precision, why = choose_precision(find_device(given["accelerator"] or trainer.get("accelerator") or "auto"))
        if not quiet and rank_zero_only.rank == 0:
            print(f"Precision {precision}: {why}.", flush=True)
    return yaml.safe_dump({**config, "trainer": {**trainer, "precision": precision}}, sort_keys=False), args


def _recipe_cli(folder: Path, dry_run: bool, purge_step: int | None) -> type[RecipeCLI]:
    # LightningCLI does all its work in the constructor, so what it needs must be there before.
    return type("RecipeCLI", (RecipeCLI,), {"folder": folder, "logs": not dry_run, "purge_step": purge_step})


class _SaveConfig(SaveConfigCallback):
    """config.yaml is there whole or not at all: `--resume` reads it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        name, self.config_filename = self.config_filename, f".{self.config_filename}.partial"
        super().setup(trainer, pl_module, stage)
        self.config_filename = name
        folder = Path(trainer.log_dir or ".")
        if trainer.is_global_zero and (folder / f".{name}.partial").is_file():
            os.replace(folder / f".{name}.partial", folder / name)


def _say_stopped(folder: Path) -> None:
    """After a signal. Processes of other devices leave quietly, lest their observer kill the first one."""
    if rank_zero_only.rank != 0:
        sys.exit(0)
    print(f"\nStopped by a signal; everything is saved. Go on with --resume --run-dir {folder}.", flush=True)
    sys.exit(143)


def _go(cli: RecipeCLI, folder: Path, dry_run: bool, checkpoint: Path | None) -> None:
    header = cli.config.get("recipe") or {}
    subcommand = header.get("subcommand", "fit")
    if rank_zero_only.rank == 0 and not dry_run:
        print(f"{header.get('title', 'Recipe')}\nWriting to {folder}\n", flush=True)
    start = checkpoint or cli.config.get("ckpt_path")
    try:
        getattr(cli.trainer, subcommand)(cli.model, datamodule=cli.datamodule, ckpt_path=start)
    except ZooError:
        print(flush=True)  # off the progress bar's line
        raise
    if cli.trainer.interrupted:
        print(f"\nStopped. What there is lies in {folder}.")
        sys.exit(130)
    if rank_zero_only.rank == 0 and not dry_run:
        reported = list(folder.glob("results*.json")) or (folder / "report.html").is_file()  # a table has been printed
        if subcommand == "fit" and not reported:
            _last_validation(cli.trainer.callback_metrics)
        _summary(folder, header)
        skipped = getattr(cli.datamodule, "num_skipped", 0)
        if skipped:
            print(f"\nUnreadable files were passed over {skipped} times (the warnings above name them).")


def _last_validation(metrics: Mapping[str, Any]) -> None:
    rows = {name.removeprefix("val/"): float(value) for name, value in metrics.items() if name.startswith("val/")}
    if rows:
        print("\nLast validation:")
    for name, value in rows.items():
        print(f"  {name:<19} {value:.4g}")


def _summary(folder: Path, header: Any) -> None:
    found = [
        ("checkpoint", sorted(folder.glob("checkpoints/last.ckpt")) or sorted(folder.glob("checkpoints/*.ckpt"))),
        ("pictures", sorted(folder.glob("figures/*.png"))),
        ("report", sorted(folder.glob("report.html"))),
        ("results", sorted(folder.glob("results*.json"))),
        ("metrics", sorted(folder.glob("metrics.csv"))),
        ("config", sorted(folder.glob("config.yaml"))),
    ]
    print("\nLeft behind:")
    for what, files in found:
        for file in files:
            print(f"  {what:<11}{file}")
    print(f"  {'curves':<11}tensorboard --logdir {folder}")
    steps = [step.format(run=folder) for step in header.get("next") or []]
    if steps:
        print("Try next:")
        for step in steps:
            print(f"  {step}")


def _callbacks(folder: Path, dry_run: DryRun | None) -> list[Callback]:
    """What every run gets besides the recipe's own callbacks."""
    if dry_run is not None:
        return [SeedEachStep(), dry_run]
    bar = RichProgressBar(leave=False) if sys.stdout.isatty() else TQDMProgressBar(refresh_rate=50)
    return [SeedEachStep(), bar, ResumableCheckpoint()]


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160]


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _keep(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(
        part in text
        for part in ("litlogger", "LitLogger", "LitModelCheckpoint", "TPU available", "HPU available", "to estimate")
    )


def _zoo_error_behind(error: BaseException | None) -> ZooError | None:
    while error is not None and not isinstance(error, ZooError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: Exception) -> str:
    """jsonargparse nests its reasons over many lines: the key, what it wants and what it got, in one."""
    text = str(error)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    wanted = [
        want for want in re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", text, re.M) if "NoneType" not in want
    ]
    if not keys or not wanted:
        return " ".join(text.split())
    got = re.search(r"Got value: (.+?)$", text, re.M) or re.search(r"Given value: (.+?)$", text, re.M)
    wanted = [re.sub(r"<class '(?:\w+\.)*(\w+)'>|typing\.", r"\1", want) for want in dict.fromkeys(wanted)]
    return f"{'.'.join(keys)}: expected {' or '.join(wanted)}" + (f", got {got.group(1)!r}." if got else ".")

"""A paper's quickstart at toy size, for `test_contract.py`: as `lightning run` runs it, and taken apart.

Runs happen in processes forked from one that has imported everything but used nothing, so each starts at once and dies
without harm.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.metadata
import io
import itertools
import multiprocessing
import os
import re
import signal
import socket
import sys
import tomllib
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from support_steps import Draws, Steps, batch_size, fit_steps, fixed_data, split_batch

from zoo.callbacks.resumable import ResumableCheckpoint
from zoo.cli.run import main
from zoo.errors import ZooError
from zoo.fsdp import register_fsdp2
from zoo.recipes import find_recipe
from zoo.strategies import ZooDDP

register_fsdp2()
EPOCHS, BATCHES = 2, 4
KILL_AT = 7  # batches begun: in the middle of the second epoch, whose second batch is saved
PRELOAD = ["zoo.cli.runner", "zoo.callbacks.probe_report", "zoo.tasks", "datamodules.images", "matplotlib.pyplot",
           "sklearn.linear_model", "tensorboard.summary.writer.event_file_writer"]  # fmt: skip


class Room:
    """One paper: its recipes at toy size, a finished run of its quickstart, and the parts of it."""

    def __init__(self, slug: str, folder: Path) -> None:
        self.slug, self.folder = slug, folder
        self.quickstart = f"{slug}/quickstart"

    # ------------------------------------------------------------------ through the command line

    def overrides(self, recipe: str | None = None) -> list[str]:
        """Command-line arguments that bring a recipe to toy size: the suite's, then the recipe's own `smoke`."""
        config = yaml.safe_load(find_recipe(recipe or self.quickstart).read_text(encoding="utf-8"))
        trainer = config.get("trainer") or {}
        values = {
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.limit_train_batches": BATCHES,
            "trainer.limit_val_batches": 2,
            "trainer.log_every_n_steps": 1,
            "trainer.check_val_every_n_epoch": 1,
        }
        counted = trainer.get("max_steps", -1) > 0 and "max_epochs" not in trainer
        values |= {"trainer.max_steps": EPOCHS * BATCHES} if counted else {"trainer.max_epochs": EPOCHS}
        values |= {"trainer.val_check_interval": 1.0} if "val_check_interval" in trainer else {}
        values |= config["recipe"].get("smoke") or {}
        return [word for key, value in values.items() for word in (f"--{key}", _word(value))]

    def run(self, name: str, *more: str, recipe: str | None = None, kill_at: int | None = None) -> Path:
        """Runs a recipe into a folder of that name, in a process of its own; killed before batch `kill_at` begins."""
        run_dir = self.folder / name
        arguments = ["run", recipe or self.quickstart, "--run-dir", str(run_dir), *self.overrides(recipe), *more]
        in_processes([(_run, arguments, kill_at)], self.folder, -signal.SIGKILL if kill_at else 0)
        return run_dir

    def resume(self, run_dir: Path) -> None:
        """Goes on with a run that was killed."""
        arguments = ["run", self.quickstart, "--run-dir", str(run_dir), *self.overrides(), "--resume"]
        in_processes([(_run, arguments, None)], self.folder)

    @cached_property
    def finished(self) -> Path:
        """The folder of a quickstart that ran to its end."""
        return self.run("finished")

    # ------------------------------------------------------------------ taken apart

    @cached_property
    def config(self) -> dict[str, Any]:
        """The quickstart at toy size with every default filled in."""
        return yaml.safe_load(printed("run", self.quickstart, *self.overrides(), "--print-config"))

    def build(self, seed: int = 0, times: int = 1) -> tuple[LightningModule, LightningDataModule]:
        """Module and data of the quickstart at toy size; `times` the batch size."""
        return build(self.config, seed, times)

    @cached_property
    def batch(self) -> int:
        """Samples of a batch at toy size."""
        return int(self.build()[1].batch_size)

    def loader(self, seed: int = 0, times: int = 1) -> tuple[LightningDataModule, Any]:
        """The data module, ready, and its training batches on the host, `times` the batch size."""
        module, data = self.build(seed, times)
        data.trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
        module.trainer = data.trainer
        data.prepare_data()
        data.setup("fit")
        return data, data.train_dataloader()

    def batches(self, seed: int = 0, times: int = 1) -> list[Any]:
        """Training batches of an epoch as training_step gets them, `times` the batch size."""
        return self.ordered_batches(seed, times)[1]

    def ordered_batches(self, seed: int = 0, times: int = 1) -> tuple[list[Any] | None, list[Any]]:
        """Which samples make up the first batches, where the loader says so, and these batches."""
        data, loader = self.loader(seed, times)
        sampler = getattr(loader, "batch_sampler", None)
        order = None if sampler is None else list(itertools.islice(sampler, BATCHES))
        batches: list[Any] = []
        for batch in itertools.islice(loader, BATCHES):
            batch = data.on_before_batch_transfer(batch, 0)
            batches.append(data.on_after_batch_transfer(batch, 0))
        assert len(batches) == BATCHES, f"one epoch has {len(batches)} batches of {times} x batch_size, not {BATCHES}"
        return order, batches

    @cached_property
    def whole(self) -> list[Any]:
        """Batches of twice the batch size."""
        return self.batches(times=2)

    def steps(self, batches: list[Any], seed: int = 0, **options: Any) -> Steps:
        """`fit_steps` of a new module, always with the same initial weights, on these batches."""
        data = fixed_data(self.ready, batches, batch_size(batches[0]))
        data.prepare_data = lambda: None  # type: ignore[method-assign]
        data.setup = lambda stage=None: None  # type: ignore[method-assign]
        module, _ = self.build()
        seed_everything(seed, verbose=False)
        return fit_steps(module, data, **options)

    @cached_property
    def val_batches(self) -> list[Any]:
        """The first two validation batches as validation_step gets them; none where there is no validation."""
        loader = self.ready.val_dataloader()
        if loader is None or isinstance(loader, list | tuple):
            return []
        batches = []
        for batch in itertools.islice(loader, 2):
            batch = self.ready.on_before_batch_transfer(batch, 0)
            batches.append(self.ready.on_after_batch_transfer(batch, 0))
        return batches if len(batches) == 2 else []

    @cached_property
    def hold_batch_norm(self) -> bool:
        """Whether batch norm has to stand still for two processes to equal one: unless it sees both their samples."""
        module, _ = self.build()
        return module.per_device_loss or not module.sync_batchnorm

    @cached_property
    def ready(self) -> LightningDataModule:
        """The data module after its setup."""
        return self.loader()[0]

    def two_processes(self, tapes: list[list[torch.Tensor]] | None, strategy: str | None = None) -> list[Steps]:
        """Every batch of `whole` shared by two processes; `tapes` are the draws of the whole batches, or of the parts
        one after the other. `strategy` is another than the recipe's."""
        module, _ = self.build()
        parts = list(zip(*(split_batch(self.ready, batch, 2) for batch in self.whole), strict=True))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        jobs = []
        for rank in range(2):
            path = self.folder / f"rank{rank}.pt"
            torch.save({"config": self.config, "batches": list(parts[rank]), "tapes": tapes,
                        "per_device": module.per_device_loss, "strategy": strategy,
                        "hold": self.hold_batch_norm, "validate": self.val_batches[rank : rank + 1]}, path)  # fmt: skip
            jobs.append((_rank, rank, port, path))
        in_processes(jobs, self.folder)
        return [torch.load(self.folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def build(config: dict[str, Any], seed: int = 0, times: int = 1) -> tuple[LightningModule, LightningDataModule]:
    """Module and data module of a resolved recipe."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=LightningModule)
    parser.add_argument("--data", type=LightningDataModule)
    data = {**config["data"], "init_args": dict(config["data"].get("init_args") or {})}
    if times != 1:
        data["init_args"]["batch_size"] *= times
    seed_everything(seed, verbose=False)
    with contextlib.redirect_stderr(io.StringIO()):
        parsed = parser.instantiate_classes(parser.parse_object({"model": config["model"], "data": data}))
    return parsed.model, parsed.data


def printed(*argv: str) -> str:
    """What a `lightning` command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(list(argv))
    return out.getvalue()


def checkpoint_difference(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, bit for bit; paths and times of the runs do not count."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if first.dtype == second.dtype and torch.equal(first, second) else [where]
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        missing = [f"{where}/{key}" for key in keys if key not in first or key not in second]
        shared = [key for key in keys if key in first and key in second]
        return missing + [d for key in shared for d in checkpoint_difference(first[key], second[key], f"{where}/{key}")]
    if isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [d for index, (a, b) in pairs for d in checkpoint_difference(a, b, f"{where}/{index}")]
    return [] if first == second or first is second else [where]


# ---------------------------------------------------------------------- other processes


def in_processes(jobs: list[tuple[Any, ...]], folder: Path, expected: int = 0, timeout: float = 300) -> None:
    """Runs `function(*arguments)` of every job at the same time; a job that ends otherwise than expected fails with its
    output."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    logs = [folder / f"process{index}.log" for index in range(len(jobs))]
    workers = [context.Process(target=_guard, args=(log, *job)) for log, job in zip(logs, jobs, strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout)
    hung = [worker for worker in workers if worker.is_alive()]
    for worker in hung:
        worker.kill()
        worker.join()
    codes = [worker.exitcode for worker in workers]
    tails = "\n".join(log.read_text(errors="replace")[-3000:] for log in logs if log.is_file())
    assert not hung, f"still running after {timeout} s:\n{tails}"
    assert all(code == expected for code in codes), f"exit codes {codes}, expected {expected}:\n{tails}"


def _guard(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        torch.set_num_threads(1)
        try:
            function(*arguments)
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _run(arguments: list[str], kill_at: int | None) -> None:
    if kill_at is not None:
        _die_in_batch(kill_at)
    main(arguments)


def _die_in_batch(count: int) -> None:
    from lightning import Callback

    class Kill(Callback):
        begun = 0

        def on_train_batch_start(self, *_: Any) -> None:
            self.begun += 1
            if self.begun == count:
                os.kill(os.getpid(), signal.SIGKILL)

    original = Trainer.fit

    def fit(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        self.callbacks.append(Kill())
        for callback in self.callbacks:
            if isinstance(callback, ResumableCheckpoint):
                callback.every_n_steps = 1
        return original(self, *args, **kwargs)

    Trainer.fit = fit  # type: ignore[method-assign]


def import_without(slug: str, config: dict[str, Any]) -> None:
    """Builds the room's module where the packages of all extras are missing: it works, or names the extra."""
    missing = {module for name in _narrow_packages() for module in name}
    for name in [name for name in sys.modules if name.startswith("zoo.papers.")]:
        del sys.modules[name]  # other tests of this process may have asked for them

    class Refuse(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name.partition(".")[0] in missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Refuse())
    try:
        importlib.import_module(f"zoo.papers.{slug}")
        build(config)
    except ZooError as error:
        if not re.search(r"pip install.*\[[\w,]+\]", str(error)):
            raise
    others = [name for name in sys.modules if name.startswith("zoo.papers.") and name.split(".")[2] != slug]
    assert not others, f"imports another room: {others}"


def _narrow_packages() -> list[list[str]]:
    """Modules of the packages that only an extra installs."""
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [line for key in extras if key not in ("test", "dev") for line in extras[key]]
    named = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
    modules: dict[str, list[str]] = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            modules.setdefault(package.lower(), []).append(module)
    return [modules.get(name, []) for name in named - {project["name"]}]


def _rank(rank: int, port: int, path: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "contract"}
    given = torch.load(path, weights_only=False)
    module, data = build(given["config"])
    tapes, per_device = given["tapes"], given["per_device"]

    def replay(index: int) -> Draws:
        return Draws(tapes[2 * index + rank]) if per_device else Draws(tapes[index], rank, 2)

    size = batch_size(given["batches"][0])
    steps = fit_steps(module, fixed_data(data, given["batches"], size), replay=replay, hold_batch_norm=given["hold"],
                      val_batches=given["validate"] or None,
                      devices=2, strategy=given["strategy"] or _strategy(given["config"]))  # fmt: skip
    torch.save(steps, path)


def _strategy(config: dict[str, Any]) -> Any:
    chosen = (config.get("trainer") or {}).get("strategy", "auto")
    return ZooDDP() if chosen in ("auto", "ddp") else chosen


def _word(value: Any) -> str:
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).splitlines()[0]

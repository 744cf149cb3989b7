"""Several processes on this machine, as torchrun would start them, and a small recipe for them to run."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

SMALL = dict(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, decoder_embed_dim=16, decoder_depth=1,
             decoder_num_heads=2, mask_ratio=0.25)  # fmt: skip


def launch(function: Callable[..., Any], world: int, folder: Path, *arguments: Any, **environment: str) -> list[Any]:
    """Runs `function(*arguments)` in `world` processes as torchrun would start them; returns exit codes."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.cli.runner", "zoo.papers.droppos", "datamodules.droppos", "tensorboard"])
    port = free_port()
    processes = []
    for rank in range(world):
        variables = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x",
            **environment,
        }  # fmt: skip
        variables = {key: value.format(rank=rank) for key, value in variables.items()}
        log = folder / f"rank{rank}.log"
        processes.append(context.Process(target=_in_process, args=(function, arguments, variables, log)))
        processes[-1].start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def _in_process(function: Callable[..., Any], arguments: Any, variables: dict[str, str], log: Path) -> None:
    for name in ("ZOO_RUN_DIR", "ZOO_RESUME"):  # of a run that a test before made in its own process
        os.environ.pop(name, None)
    os.environ.update(variables)
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*arguments)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.glob("rank*.log")))


def recipe_of(folder: Path, **trainer: Any) -> Path:
    path = folder / "small.yaml"
    content = {
        "recipe": {"title": "small", "subcommand": "fit"},
        "seed_everything": 3,
        "trainer": {
            "accelerator": "cpu", "precision": "64-true", "max_epochs": 1, "limit_val_batches": 0,
            "enable_model_summary": False, "enable_progress_bar": False, "log_every_n_steps": 1, **trainer,
        },
        "model": {"class_path": "zoo.papers.droppos.DropPos", "init_args": {**SMALL, "warmup_epochs": 0.2}},
        "data": {
            "class_path": "datamodules.droppos.DropPosDataModule",
            "init_args": {"root": "digits", "image_size": 16, "batch_size": 8, "num_workers": 0},
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt")["state_dict"]


def assert_close(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert torch.allclose(mine[key], theirs[key], rtol=0, atol=1e-6), key

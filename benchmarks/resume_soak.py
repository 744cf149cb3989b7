"""Soak test of exact resume: kill a run at random moments for as long as you like, then compare with the whole run.

    python benchmarks/resume_soak.py RECIPE --hours 2 -- --data.root DIR --trainer.max_epochs 3

Runs the recipe once without interruption and once with SIGKILLs; says how often it was killed, where it went on, and
whether weights, optimiser state and metrics.csv came out the same. Exit code 1 if they did not.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def lightning_run(recipe: str, folder: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "zoo.cli.run", "run", recipe, "--run-dir", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def differences(mine: object, theirs: object, where: str = "") -> list[str]:
    """Paths at which two checkpoints differ."""
    if isinstance(mine, torch.Tensor):
        return [] if isinstance(theirs, torch.Tensor) and torch.equal(mine, theirs) else [where]
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = mine.keys() | theirs.keys()
        return [found for key in keys for found in differences(mine.get(key), theirs.get(key), f"{where}.{key}")]
    if isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{where}[{index}]")]
    return [] if mine == theirs else [where]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--hours", type=float, default=1.0, help="how long to go on killing")
    parser.add_argument("--mean-seconds", type=float, default=60.0, help="mean time between kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("more", nargs="*", help="settings of the recipe, after --")
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"Writing to {folder}", flush=True)
    if lightning_run(arguments.recipe, folder / "whole", *arguments.more).wait():
        sys.exit("The uninterrupted run failed: try the same command with `lightning run`.")
    end, kills, runs, wrong = time.monotonic() + arguments.hours * 3600, 0, 0, []
    while True:
        run, resume, code = folder / f"killed{runs}", [], None
        while code != 0:
            process = lightning_run(arguments.recipe, run, *resume, *arguments.more)
            try:
                over = time.monotonic() >= end
                code = process.wait(None if over else draw.expovariate(1 / arguments.mean_seconds))
                if code:
                    sys.exit(f"A resumed run failed with exit code {code}: {run}")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
                newest = max((run / "checkpoints").glob("epoch*.ckpt"), default=None)
                print(f"kill {kills}, newest checkpoint {newest.name if newest else 'none'}", flush=True)
            resume = ["--resume"]
        runs += 1
        mine, theirs = (torch.load(path / "checkpoints" / "last.ckpt") for path in (run, folder / "whole"))
        wrong += [f"{run.name}{where}" for where in differences(mine, theirs)]
        if (run / "metrics.csv").read_bytes() != (folder / "whole" / "metrics.csv").read_bytes():
            wrong.append(f"{run.name}: metrics.csv")
        if time.monotonic() >= end:
            break
    print(
        f"{kills} kills in {runs} runs; " + (f"{len(wrong)} differences: {wrong[:10]}" if wrong else "no difference.")
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

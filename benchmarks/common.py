"""What the benchmarks of all papers share: interleaved timing, the machine's matmul peak, FLOPs, memory, one report.

A report is a dict with the keys `benchmark`, `settings`, `machine`, `rows` (one dict a side, the same keys in all) and
`notes`; `write_report` prints it as a table and writes it as JSON.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

Report = dict[str, Any]
_LOAD_BEFORE = round(os.getloadavg()[0], 2)  # taken at import: later it would be our own load
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def machine(device: str) -> dict[str, Any]:
    """What the numbers were taken on."""
    info = {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": _LOAD_BEFORE,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    return info


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def seconds(run: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Wall seconds of one `run()`, over `repeats` of them, the device's queue empty before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def alternate(
    sides: dict[str, Callable[[], Any]], device: str, rounds: int, min_seconds: float
) -> list[dict[str, float]]:
    """Times all sides in turn, `rounds` times over, so that a neighbour's load or a hot chip meets each of them.

    Each side is warmed up by two runs; the second says how many runs make up `min_seconds`. Returns seconds a run:
    one dict a round.
    """
    repeats = {}
    for name, run in sides.items():
        seconds(run, device)
        repeats[name] = max(1, round(min_seconds / seconds(run, device)))
    return [{name: seconds(run, device, repeats[name]) for name, run in sides.items()} for _ in range(rounds)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def matmul_sides(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: str) -> tuple[dict, dict]:
    """Matrix products (m, k) x (k, n) for `alternate`, weights laid out as nn.Linear has them; and their FLOPs."""
    sides, flops = {}, {}
    for m, k, n in dict.fromkeys(shapes):
        left, right = torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype).t()
        out = torch.empty(m, n, device=device, dtype=dtype)
        name = f"matmul {m}x{k}x{n}"
        sides[name] = lambda a=left, b=right, c=out: torch.mm(a, b, out=c)
        flops[name] = 2 * m * k * n
    return sides, flops


def matmul_flops(step: Callable[[], Any]) -> int:
    """FLOPs of the matrix products and convolutions of one step, forward and backward.

    PyTorch's counter knows no fused attention on CPU (it counts 0); so attention runs unfused for this one step, which
    also leaves out what a fused backward computes twice.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def resident_bytes(field: str) -> int:
    """This process's resident memory from the kernel: "VmRSS" now, "VmHWM" its peak (Linux only).

    Not `ru_maxrss`: after a fork that includes the parent's peak.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def in_own_process(script: str, *arguments: str) -> Any:
    """Runs `python script arguments` and returns the JSON of its last output line."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_report(report: Report, json_path: str | None) -> None:
    """Prints the rows as a table, then the notes; writes everything to `json_path` if given."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items())
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    table = Table(title=f"{report['benchmark']}: {settings}\n{machine}", title_justify="left", title_style="bold")
    columns = list(dict.fromkeys(key for row in report["rows"] for key in row))
    for column in columns:
        table.add_column(column, justify="left" if isinstance(report["rows"][0][column], str) else "right")
    for row in report["rows"]:
        table.add_row(*[_shown(row.get(column)) for column in columns])
    console.print(table)
    for note in report["notes"]:
        console.print(f"- {note}", highlight=False)
    if json_path:
        Path(json_path).write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written to {json_path}", highlight=False)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

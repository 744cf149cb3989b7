"""What parity tests share that read cases recorded with TensorFlow code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch


def golden_cases(folder: Path, key: str, inside: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """(name, case) of each `.pt` file that has `key`, or has it in its entry `inside`; skips without any."""
    found = []
    for path in sorted(folder.glob("*.pt")):
        case = torch.load(path, weights_only=True)
        if key in (case if inside is None else case.get(inside, {})):
            found.append((path.stem, case))
    if not found:
        pytest.skip(f"no case with {key!r} in {folder}")
    return found


class Replay:
    """Gives back recorded draws, and checks that the right ones are asked for."""

    def __init__(self, draws: list[Any]) -> None:
        self.draws = list(draws)

    def random(self) -> float:
        kind, value = self.draws.pop(0)
        assert kind == "random"
        return value

    def randint(self, a: int, b: int) -> int:
        kind, low, high, value = self.draws.pop(0)
        assert (kind, low, high) == ("randint", a, b)
        return value

    def shuffle(self, items: list[Any]) -> None:
        kind, order = self.draws.pop(0)
        assert kind == "shuffle"
        items[:] = [items[i] for i in order]

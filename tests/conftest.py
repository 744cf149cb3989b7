"""Shared fixtures. `pytest tests --golden DIR` runs the parity tests over another folder of recorded cases."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Two test processes on two cores: one thread each, also in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=str(Path(__file__).parent / "golden"),
        help="folder of parity cases, one subfolder a paper (default: tests/golden)",
    )
    parser.addoption(
        "--scenes", metavar="DIR", help="folder of Argoverse 1 CSVs for the driving room's end-to-end test"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests share a process, except where they run over all papers: there a paper's do."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrPaper(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            paper = re.search(r"\[(\w+)\]$", test)
            return f"{file} {paper[1]}" if file.endswith("test_contract.py") and paper else file

    return ByFileOrPaper(config, log)


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """`golden_dir(slug)`: the folder of a paper's cases; skips if the given folder has none for that paper."""

    def folder(slug: str) -> Path:
        path = Path(request.config.getoption("--golden")) / slug
        if not path.is_dir():
            pytest.skip(f"no cases for {slug} in {path.parent}")
        return path

    return folder

"""Shared fixtures. `pytest tests --golden DIR` runs the parity tests over another folder of recorded cases."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file's tests share a process, except where they run over all papers: there a paper's do.
    for item in items:
        paper = item.callspec.params.get("room") if hasattr(item, "callspec") else None
        item.add_marker(pytest.mark.xdist_group(paper or item.path.stem))


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """`golden_dir(slug)`: the folder of a paper's cases; skips if the given folder has none for that paper."""

    def folder(slug: str) -> Path:
        path = Path(request.config.getoption("--golden")) / slug
        if not path.is_dir():
            pytest.skip(f"no cases for {slug} in {path.parent}")
        return path

    return folder

"""The wheel, not only the editable install, carries recipes, manifests and weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A built wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def python(site: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "ZOO_CACHE": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_everything_in_the_clone_is_in_the_wheel(site, tmp_path):
    script = "import zoo; print(zoo.__file__); print(*zoo.list_models()); print(*zoo.list_recipes())"
    where, models, recipes = python(site, tmp_path, "-c", script).splitlines()
    assert Path(where).is_relative_to(site)
    assert set(models.split()) == {path.stem for path in (ROOT / "checkpoints").glob("*/*.yaml")}
    assert set(recipes.split()) == {f"{p.parent.name}/{p.stem}" for p in (ROOT / "recipes").glob("*/*.yaml")}


def test_quickstart_and_shipped_weights_work_from_the_wheel(site, tmp_path):
    arguments = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--model.warmup_epochs", "0"]
    printed = python(site, tmp_path, "-m", "zoo.cli.run", "run", "droppos/quickstart", *arguments)
    assert "What it learned" in printed
    assert list((tmp_path / "runs" / "droppos" / "quickstart").glob("*/figures/positions.png"))
    script = "import zoo; print(*(m.name for m in map(zoo.info, zoo.list_models()) if m.source.kind == 'file'))"
    for name in python(site, tmp_path, "-c", script).split():
        python(site, tmp_path, "-c", f"import zoo; zoo.load('{name}')")

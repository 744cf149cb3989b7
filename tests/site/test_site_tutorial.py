"""The tutorial of docs/add-a-paper.md, done by the letter in a copy of the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "add-a-paper.md"
COMMANDS = {
    "lightning": [sys.executable, "-c", "from zoo.cli.run import main; main()"],
    "zoo": [sys.executable, "-c", "from zoo.cli.app import main; main()"],
    "pytest": [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"],
}
BLOCK = re.compile(r'^(`{3,})(\w+)(?: title="([^"]+)")?\n(.*?)^\1$', re.S | re.M)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The parts of the repository that a contributor touches or runs."""
    folder = tmp_path / "clone"
    for name in ("zoo", "datamodules", "recipes", "checkpoints"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for path in [*ROOT.glob("tests/support_*.py"), ROOT / "tests/conftest.py", ROOT / "tests/test_contract.py"]:
        shutil.copy(path, folder / "tests")
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_every_block_of_the_tutorial_works(clone):
    env = {**os.environ, "PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) > 8
    outputs = []
    for _, language, title, text in blocks:
        if title:
            path = clone / title.removesuffix(" (add)")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if title.endswith("(add)") else "x", encoding="utf-8") as file:
                file.write(text)
            continue
        commands = [[sys.executable, "-c", text]]
        if language == "sh":
            lines = [shlex.split(line) for line in text.strip().splitlines()]
            commands = [COMMANDS[word] + rest for word, *rest in lines]
        for command in commands:
            done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            outputs.append(done.stdout)
    assert (clone / "runs/first/figures/restored.png").is_file()
    assert "the mean image" in outputs[0]
    assert re.search(r"\b1[0-9] passed", outputs[2]), outputs[2]
    assert (clone / "exported/denoising-digits.safetensors").is_file()

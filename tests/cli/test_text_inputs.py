"""Text that is too long, empty or no text at all, given to the command line: one clear line, exit code 2."""

import json

import numpy as np
import pytest

from zoo.cli.app import main

FILES = {
    "gaps.txt": b"\n  \none line\n\n\ntwo lines\n\t\n",
    "empty.txt": b"\n \n",
    "binary.txt": bytes(range(1, 256)) * 9,
    "zero.txt": b"a good line\nand\x00 another\n",
    "broken.parquet": b"nothing of the kind",
    "long.txt": b"word " * 500 + b"\na short line\n" + b"and " * 300,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def run(capsys, place, tmp_path, monkeypatch):
    """Runs `zoo` in the folder of the files: exit code and what it printed on stderr."""
    monkeypatch.chdir(place)

    def start(*arguments):
        code = 0
        try:
            main(list(arguments))
        except SystemExit as stopped:
            code = stopped.code
        return code, capsys.readouterr().err

    return start


def test_lines_are_embedded_and_long_ones_counted(run, tmp_path):
    output = tmp_path / "features.npz"
    assert run("embed", "electra-docs", "gaps.txt", "--lines", "-o", str(output)) == (0, "")
    assert np.load(output)["files"].tolist() == ["gaps.txt:3", "gaps.txt:6"]
    code, err = run("embed", "electra-docs", "long.txt", "--lines", "-o", str(output), "--force")
    assert code == 0
    assert err.startswith("2 of 3 texts fill the model's")
    assert np.isfinite(np.load(output)["features"]).all()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["embed", "electra-docs", "empty.txt", "--lines"], "There is no line with text"),
        (["embed", "electra-docs", "binary.txt", "--lines"], "binary.txt, line 2: not UTF-8 (byte 0x80)"),
        (["embed", "electra-docs", "binary.txt"], "binary.txt, line 2: not UTF-8"),
        (["embed", "electra-docs", "zero.txt", "--lines"], "zero.txt, line 2: a zero byte"),
        (["predict", "electra-docs", "gaps.txt"], "electra-docs is no fine-tuned text model"),
        (["predict", "electra-docs", "."], ". is a folder"),
        (["tokenizer", "zero.txt"], "zero.txt, line 2: a zero byte"),
        (["tokenizer", "binary.txt"], "binary.txt, line 2: not UTF-8"),
        (["tokenizer", "broken.parquet"], "Cannot read broken.parquet: "),
        (["tokenizer", "empty.txt"], "There is no text in"),
    ],
)
def test_what_is_no_text_is_named(run, tmp_path, command, message):
    suffix = {"embed": "npz", "predict": "tsv", "tokenizer": "json"}[command[0]]
    code, err = run(*command, "-o", str(tmp_path / f"out.{suffix}"))
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not err.endswith("..\n")
    assert not list(tmp_path.iterdir())


def test_a_grid_that_cannot_be(run, tmp_path):
    for part in ("train", "dev"):
        (tmp_path / f"{part}.tsv").write_text("text\tlabel\n" + "good day\tcat\nbad day\tdog\n" * 8)
    (tmp_path / "file").write_text("")
    settings = ["--data.root", str(tmp_path), "--data.max_length", "32", "--data.num_workers", "0",
                "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]  # fmt: skip
    known = ["--model.backbone", "electra-docs"]
    for more, message in (
        (["--model.backbone", "no-such-model"], "There is no model 'no-such-model'"),
        (["--model.bakbone", "electra-docs"], "Did you mean 'backbone'?"),
        ([*known, "--data.task", "colla"], "data.task: expected"),
        ([*known, "--metric", "val/no_such"], "ended without val/no_such: it has val/acc"),
        ([*known, "--trainer.limit_val_batches", "0"], "ended without val/acc: it has no metric"),
    ):
        code, err = run("students", "grid", str(tmp_path / f"grid{len(message)}"), *settings, *more)
        assert (code, message in err) == (2, True), err
    for folder in (tmp_path / "file" / "grid", tmp_path / "file"):
        code, err = run("students", "grid", str(folder), *settings, *known)
        assert (code, f"Cannot write {folder}" in err) == (2, True), err
    record = json.loads((next(tmp_path.glob("grid*/batch8-lr0.0003")) / "stage.json").read_text(encoding="utf-8"))
    assert record["value"] is None

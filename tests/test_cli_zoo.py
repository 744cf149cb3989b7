"""The `zoo` command: what it prints, its exit codes, and that errors are one line on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from lightning import Trainer
from support_hub import Silent, Tiny, write_manifest

import zoo
from zoo import catalog, hub
from zoo.checkpoint_files import save_safetensors
from zoo.cli import embed as embedding
from zoo.cli.app import main


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    """A cache and a catalogue of the test's own: `tiny` lies beside its manifest, `far` is to be downloaded by hand."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "shelf"
    monkeypatch.setattr(catalog, "checkpoints_dir", lambda: folder)
    weights = folder / "paper" / "tiny.safetensors"
    write_manifest(folder, "tiny", source={"kind": "file", "filename": "tiny.safetensors"}, parameters=15)
    torch.manual_seed(0)
    save_safetensors(Tiny().state_dict(), weights)
    write_manifest(folder, "tiny", source={"kind": "file", "filename": "tiny.safetensors"}, parameters=15,
                   sha256=hub.sha256_of(weights))  # fmt: skip
    write_manifest(folder, "far")
    return folder


@pytest.fixture
def run(capsys):
    """Runs `zoo ARGS`; gives exit code, stdout and stderr."""

    def call(*args: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path):
    """A folder of five inputs of `Tiny`, one of them deeper, one hidden."""
    folder = tmp_path / "inputs"
    (folder / "deep").mkdir(parents=True)
    for index, name in enumerate(["a.txt", "b.txt", "deep/c.txt", "d.num", ".hidden.txt"]):
        (folder / name).write_text(f"{index} 1 2 3")
    return folder


def failed(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


# ---------------------------------------------------------------------- ls, info, cp


def test_ls_in_a_pipe_is_tab_separated(run):
    code, out, _ = run("ls")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert lines[0] == ["name", "paper", "parameters", "source", "title"]
    assert lines[1] == ["far", "paper", "", "manual", "A tiny model"]
    assert lines[2] == ["tiny", "paper", "15", "file", "A tiny model"]
    assert run("ls", "t*") == run("ls", "models", "t*")
    assert len(run("ls", "t*")[1].splitlines()) == 2


def test_ls_on_a_terminal_is_a_table(run, shelf, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write_manifest(shelf, "odd", title="[/odd]")  # must not be taken for markup
    code, out, _ = run("ls")
    assert code == 0
    assert "─" in out
    assert "\t" not in out
    assert "tiny" in out
    assert "[/odd]" in out
    assert "odd: [/odd]" in run("info", "odd")[1]
    code, out, _ = run("info", "tiny")
    assert code == 0
    assert "tiny.safetensors" in out


def test_ls_json_recipes_and_papers(run):
    assert [row["name"] for row in json.loads(run("ls", "--json")[1])] == ["far", "tiny"]
    recipes = json.loads(run("ls", "recipes", "*quick*", "--json")[1])
    assert "droppos/quickstart" in [row["name"] for row in recipes]
    assert recipes[0]["hardware"]
    papers = {row["name"]: row for row in json.loads(run("ls", "papers", "--json")[1])}
    assert papers["paper"]["models"] == 2
    assert papers["droppos"]["recipes"] == len(zoo.list_recipes("droppos/*"))


def test_ls_nothing_and_nonsense(run):
    code, out, err = run("ls", "models", "zebra*")
    assert (code, out) == (0, "")
    assert "zebra*" in err
    assert json.loads(run("ls", "models", "zebra*", "--json")[1]) == []
    failed(run("ls", "recipe"), "Did you mean 'recipes'")


def test_info(run):
    code, out, _ = run("info", "far")
    assert code == 0
    assert "code ab12" in out
    assert json.loads(run("info", "tiny", "--json")[1])["parameters"] == 15
    assert "lightning run droppos/quickstart" in run("info", "droppos/quickstart")[1]
    assert json.loads(run("info", "droppos/quickstart", "--json")[1])["stage"]
    failed(run("info", "tinny"), "Did you mean 'tiny'")
    failed(run("info", "droppos/quikstart"), "Did you mean 'droppos/quickstart'")


def test_info_of_a_broken_manifest(run, shelf):
    write_manifest(shelf, "broken", licence="MIT")
    failed(run("info", "broken"), "broken.yaml", "Did you mean 'license'")


def test_cp(run, tmp_path):
    source = catalog.recipe_info("droppos/quickstart").path.read_text()
    code, out, _ = run("cp", "droppos/quickstart", tmp_path / "new" / "my.yaml")
    assert code == 0
    assert f"lightning run {tmp_path / 'new' / 'my.yaml'}" in out
    assert (tmp_path / "new" / "my.yaml").read_text() == source
    assert run("cp", "droppos/quickstart", tmp_path)[0] == 0
    (tmp_path / "quickstart.yaml").write_text("edited")
    failed(run("cp", "droppos/quickstart", tmp_path), "exists already", "--force")
    assert (tmp_path / "quickstart.yaml").read_text() == "edited"
    assert run("cp", "droppos/quickstart", tmp_path, "--force")[0] == 0
    assert (tmp_path / "quickstart.yaml").read_text() == source
    failed(run("cp", "droppos/quickstart", tmp_path / "typo"), "ends in .yaml")
    failed(run("cp", "droppos/quikstart", tmp_path), "Did you mean 'droppos/quickstart'")


# ---------------------------------------------------------------------- weights


def test_download_add_verify(run, tmp_path, shelf):
    assert run("download", "tiny")[1].strip() == str(shelf / "paper" / "tiny.safetensors")
    failed(run("download", "far"), "zoo add far FILE", "ab12")
    code, out, _ = run("verify")
    assert code == 0
    assert [line.split("\t")[:2] for line in out.splitlines()] == [["not cached", "far"], ["ok", "tiny"]]
    assert run("verify", "far")[0] == 1
    assert run("verify", "tiny")[0] == 0

    file = tmp_path / "x.pth"
    torch.save(Tiny().state_dict(), file)
    code, out, _ = run("add", "far", file)
    assert code == 0
    assert run("verify", "far")[:2] == (0, f"ok\tfar\t{out.split(': ')[1].strip()}\n")
    assert run("download", "far")[0] == 0

    weights = shelf / "paper" / "tiny.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    code, out, _ = run("verify")
    assert code == 1
    assert "damaged\ttiny" in out
    failed(run("verify", "tinny"), "Did you mean 'tiny'")
    failed(run("add", "far", tmp_path / "gone.pth"), "gone.pth")


# ---------------------------------------------------------------------- embed


def test_embed_npz(run, files, tmp_path):
    output = tmp_path / "out" / "features.npz"
    code, out, err = run("embed", "tiny", files, "-o", output, "--batch-size", 3, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "4 files x 3 features" in out
    stored = np.load(output)
    names = ["a.txt", "b.txt", "d.num", "deep/c.txt"]
    assert stored["files"].tolist() == [str(files / name) for name in names]
    model = zoo.load("tiny")
    expected = torch.cat([model(model.preprocess(files / name)) for name in names]).detach().numpy()
    np.testing.assert_allclose(stored["features"], expected, rtol=1e-6)
    assert stored["features"].dtype == np.float32
    assert [path.name for path in output.parent.iterdir()] == ["features.npz"]


def test_embed_parquet_of_matching_files(run, files, tmp_path):
    output = tmp_path / "features.parquet"
    assert run("embed", "tiny", files, files / "d.num", "-o", output, "--pattern", "*.txt")[0] == 0
    table = pq.read_table(output).to_pydict()
    assert [name.rsplit("/", 1)[1] for name in table["file"]] == ["a.txt", "b.txt", "c.txt", "d.num"]
    assert [len(feature) for feature in table["feature"]] == [3] * 4


def test_embed_names_a_file_it_cannot_read(run, files, tmp_path):
    output = tmp_path / "features.npz"
    (files / "b.txt").write_text("not numbers")
    failed(run("embed", "tiny", files, "-o", output), str(files / "b.txt"), "--skip-bad", "not")
    assert not output.exists()
    code, out, err = run("embed", "tiny", files, "-o", output, "--skip-bad")
    assert code == 0
    assert "3 files x 3 features, 1 skipped" in out
    assert err.startswith(f"skipped: Cannot read {files / 'b.txt'}")
    assert str(files / "b.txt") not in np.load(output)["files"]
    for file in files.rglob("*.*"):
        file.write_text("x")
    failed(run("embed", "tiny", files, "-o", tmp_path / "none.npz", "--skip-bad"), "None of the 4 files")


def test_embed_refuses(run, files, tmp_path):
    (tmp_path / "there.npz").write_text("mine")
    failed(run("embed", "tiny", files, "-o", tmp_path / "there.npz"), "exists already")
    assert (tmp_path / "there.npz").read_text() == "mine"
    failed(run("embed", "tiny", files, "-o", tmp_path / "x.csv"), ".npz or .parquet")
    inside = tmp_path / "there.npz" / "x.npz"
    failed(run("embed", "tiny", files, "-o", inside), f"Cannot write {inside}")
    failed(run("embed", "tiny", files / "gone", "-o", tmp_path / "x.npz"), "no file or folder")
    failed(run("embed", "tiny", files, "-o", tmp_path / "x.npz", "--pattern", "*.jpg"), "'*.jpg'")
    failed(run("embed", "tiny", files, "-o", tmp_path / "x.npz", "--device", "gpu"), "no device 'gpu'")
    failed(run("embed", "tinny", files, "-o", tmp_path / "x.npz"), "Did you mean 'tiny'")


def test_embed_with_a_model_that_reads_no_files(files):
    for skip in (True, False):
        with pytest.raises(zoo.ZooError, match="Silent cannot read files"):
            embedding.embed_files(Silent(), embedding.expand([files]), skip_bad=skip)


# ---------------------------------------------------------------------- export


def test_export_embed_and_info_of_what_was_trained(run, files, tmp_path):
    trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(Tiny(out=2), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(2, 4))))
    ckpt = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(ckpt)
    code, out, _ = run("export", tmp_path / "run", "--name", "mine", "-o", tmp_path / "models", "--dtype", "fp16")
    manifest = tmp_path / "models" / "mine.yaml"
    assert code == 0
    assert str(manifest) in out
    assert yaml.safe_load(manifest.read_text())["init_args"]["out"] == 2
    assert run("info", manifest)[0] == 0
    assert run("verify", manifest)[0] == 0
    assert run("embed", manifest, files, "-o", tmp_path / "x.npz")[0] == 0
    assert run("embed", ckpt, files, "-o", tmp_path / "y.npz")[0] == 0
    assert np.load(tmp_path / "x.npz")["features"].shape == (4, 2)
    failed(run("export", ckpt, "--name", "mine", "-o", tmp_path / "models"), "exists already")
    failed(run("export", tmp_path / "inputs", "--name", "mine"), "without a checkpoint")


# ---------------------------------------------------------------------- the command itself


def test_every_command_has_help_with_an_example(run):
    code, out, _ = run("--help")
    commands = [line.split()[1] for line in out.split("Commands")[1].splitlines() if line.startswith("│ ") and
                not line.startswith("│  ")]  # fmt: skip
    assert code == 0
    assert {"add", "cp", "download", "embed", "export", "info", "ls", "verify"} <= set(commands)
    for command in commands:
        code, out, _ = run(command, "-h")
        assert code == 0
        assert f"zoo {command} " in out.split("Example")[1], command


def test_usage_errors_exit_with_2(run):
    for args in (["nonsense"], ["info"], ["ls", "--nonsense"], ["export", "x"], ["embed", "tiny", "x"]):
        code, out, err = run(*args)
        assert code == 2, args
        assert out == ""
        assert err


def test_version(run):
    assert run("--version")[1].strip() == zoo.__version__


def test_listing_starts_quickly_and_without_torch():
    code = "import sys; from zoo.cli.app import main; main(['ls']); main(['info', 'droppos-vitb']); main(['--help']); "
    code += "print({'torch', 'lightning', 'timm', 'numpy'} & set(sys.modules))"
    start = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "set()"
    assert time.perf_counter() - start < 4


def test_process_prints_one_line_and_exits_with_2():
    code = "from zoo.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "info", "dropos-vitb"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: There is no model")
    assert done.stderr.count("\n") == 1

"""Reading weights: every usual kind of file, nothing executed, and a line that says what a wrong file is."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile

import jsonargparse
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoint_files import read_checkpoint, read_state_dict, save_safetensors
from zoo.errors import ZooError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.steps": torch.tensor(3)}
WRAPPED = {f"module.{key}": value for key, value in STATE.items()}
OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

KINDS = {
    "bare": STATE,
    "bare, DDP": WRAPPED,
    "official DropPos": {"epoch": 799, "state_dict": WRAPPED, "optimizer": OPTIMIZER, "model": "DropPos_mae_vit_base"},
    "MAE": {"model": STATE, "optimizer": OPTIMIZER, "epoch": 1, "args": argparse.Namespace(lr=0.1, device="cuda")},
    "numpy scalars": {"model": STATE, "best": np.float64(84.2), "epoch": np.int64(3)},
    "Lightning": {"state_dict": STATE, "epoch": 1, "hyper_parameters": {"x": jsonargparse.Namespace(lr=1)}},
}


def same(state):
    assert set(state) == set(STATE)
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles(tmp_path, kind, zipped):
    torch.save(KINDS[kind], tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    same(read_state_dict(tmp_path / "x.pth"))


def test_safetensors_whatever_the_ending(tmp_path):
    save_file(STATE, tmp_path / "x.bin")
    same(read_state_dict(tmp_path / "x.bin"))
    save_safetensors(STATE, tmp_path / "y.safetensors")
    same(read_state_dict(str(tmp_path / "y.safetensors")))


def test_saving_tensors_that_share_memory_or_are_strided(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save_safetensors({"tied": base, "same": base, "turned": base.T}, tmp_path / "x.safetensors")
    state = read_state_dict(tmp_path / "x.safetensors")
    assert torch.equal(state["tied"], state["same"])
    assert torch.equal(state["turned"], base.T)


def test_saving_where_it_cannot_raises_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"(?i)no such file|is a directory") as caught:
        save_safetensors(STATE, tmp_path / "missing" / "x.safetensors")
    assert caught.value.errno == 2


class Evil:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_code_in_a_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "args": Evil()}, "zip.pth")
    torch.save({"model": STATE, "args": Evil()}, "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": Evil()}))
    for name in ("zip.pth", "old.pth", "plain.pkl"):
        with pytest.raises(ZooError, match=name) as caught:
            read_checkpoint(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ZooError, match=r"posix\.system"):
        read_checkpoint("zip.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_truncated(tmp_path, kind, share):
    path = tmp_path / "x"
    state = {"w": torch.randn(2000)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ZooError, match=f"{path} is (damaged|truncated)") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>login</html>", "is a web page"),
        (b"<html><body>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"just some text that somebody renamed", "is no checkpoint"),
        (b"\x80", "is no checkpoint"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no checkpoint"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ZooError, match=message) as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def test_ordinary_zip_and_torchscript(tmp_path):
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as archive:
        archive.writestr("models/vitb.pth", b"...")
    with pytest.raises(ZooError, match=r"ordinary zip archive \(models/vitb.pth"):
        read_state_dict(tmp_path / "folder.zip")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"...")
        archive.writestr("model/constants.pkl", b"...")
    with pytest.raises(ZooError, match="TorchScript"):
        read_state_dict(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "model": "vit_base"}, "expected tensors by name, found epoch, model"),
        ({"state_dict": {}}, "found nothing"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "found b"),
        ([torch.zeros(1)], "holds a list"),
        (torch.zeros(1), "holds a Tensor"),
    ],
)
def test_checkpoints_without_a_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ZooError, match=message):
        read_state_dict(tmp_path / "x.pth")


def test_missing_file(tmp_path):
    with pytest.raises(ZooError, match="No such file"):
        read_state_dict(tmp_path / "gone.pth")
    with pytest.raises(ZooError, match="directory"):
        read_state_dict(tmp_path)

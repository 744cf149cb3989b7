"""`zoo.load` from every kind of name, `add` and `export`, with a toy module and with DropPos in official keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer
from support_hub import Tiny, serve, write_manifest
from torch.utils.data import DataLoader, TensorDataset

import zoo
from zoo import catalog, download, hub
from zoo.checkpoint_files import save_safetensors
from zoo.errors import ZooError
from zoo.loading import add, export, find_manifest
from zoo.papers.droppos import DropPos, weights

TINY_DROPPOS = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
TINY_DROPPOS |= {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache and a catalogue of the test's own."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(catalog, "checkpoints_dir", lambda: tmp_path / "shelf")
    return tmp_path / "cache"


@pytest.fixture
def shelf(tmp_path):
    return tmp_path / "shelf"


@pytest.fixture
def tiny(shelf):
    """A model in the catalogue with its weights beside the manifest; gives the state dict."""
    state = Tiny(width=5).state_dict()
    write_manifest(shelf, "tiny", source={"kind": "file", "filename": "tiny.safetensors"}, init_args={"width": 5})
    save_safetensors(state, shelf / "paper" / "tiny.safetensors")
    return state


def equal(model, state) -> bool:
    own = model.state_dict()
    return set(own) == set(state) and all(torch.equal(own[key], state[key]) for key in own)


def train(folder: Path, steps: int = 2, **arguments) -> tuple[Tiny, Path]:
    """A run folder of `Tiny` as `lightning run` leaves it."""
    model = Tiny(**arguments)
    trainer = Trainer(max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder)  # fmt: skip
    data = DataLoader(TensorDataset(torch.randn(4, model.hparams.width)), batch_size=2)
    trainer.fit(model, data)
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return model, folder


# ---------------------------------------------------------------------- load


def test_load_from_the_catalogue(tiny):
    model = zoo.load("tiny")
    assert isinstance(model, Tiny)
    assert not model.training
    assert equal(model, tiny)


def test_load_from_a_manifest_elsewhere(tiny, shelf, tmp_path, monkeypatch):
    moved = (shelf / "paper").rename(tmp_path / "elsewhere")
    assert equal(zoo.load(moved / "tiny.yaml"), tiny)
    monkeypatch.chdir(moved)
    assert equal(zoo.load("tiny.yaml"), tiny)
    with pytest.raises(ZooError, match=r"no manifest 'gone\.yaml'"):
        zoo.load("gone.yaml")


def test_not_pretrained_touches_no_file(shelf, cache):
    write_manifest(shelf, "tiny", init_args={"width": 6})
    torch.manual_seed(0)
    first = zoo.load("tiny", pretrained=False)
    torch.manual_seed(1)
    assert not equal(zoo.load("tiny", pretrained=False), first.state_dict())
    assert first.backbone.in_features == 6
    assert not first.training
    assert not cache.exists()
    with pytest.raises(ZooError, match="zoo add tiny FILE"):
        zoo.load("tiny")


def test_overrides(tiny):
    assert zoo.load("tiny", betas=(0.5, 0.6)).hparams.betas == (0.5, 0.6)
    assert zoo.load("tiny", pretrained=False, out=7).backbone.out_features == 7
    with pytest.raises(ZooError, match=r"Tiny has no argument 'widht'\. Did you mean 'width'"):
        zoo.load("tiny", widht=3)
    with pytest.raises(ZooError, match=r"backbone\.weight has shape \(3, 5\), the model needs \(7, 5\)"):
        zoo.load("tiny", out=7)


def test_weights_from_path_url_and_state_dict(tiny, tmp_path, cache):
    other = Tiny(width=5).state_dict()
    official = {f"module.{key.replace('backbone', 'encoder')}": value for key, value in other.items()}
    path = tmp_path / "x.pth"
    torch.save({"epoch": 1, "state_dict": official, "model": "arch"}, path)
    assert equal(zoo.load("tiny", weights=path), other)
    assert equal(zoo.load("tiny", weights=str(path)), other)
    assert equal(zoo.load("tiny", weights=other), other)
    assert equal(zoo.load("tiny", weights=official), other)
    with serve(path.read_bytes()) as server:
        assert equal(zoo.load("tiny", weights=server.url), other)
        server.url = server.url.replace("download", "another")
        second = Tiny(width=5).state_dict()
        torch.save(second, path)
        server.content = path.read_bytes()
        assert equal(zoo.load("tiny", weights=server.url), second)  # another address that ends alike
        assert len(server.requests) == 2


def test_weights_that_do_not_fit_are_named(tiny, tmp_path):
    torch.save({"backbone.weight": torch.zeros(3, 5), "head.bias": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ZooError, match=r"x\.pth do not fit Tiny: backbone\.bias is missing; head\.bias is not"):
        zoo.load("tiny", weights=tmp_path / "x.pth")
    with pytest.raises(ZooError, match="There is no weights file"):
        zoo.load("tiny", weights=tmp_path / "gone.pth")
    with pytest.raises(ZooError, match="pretrained=False"):
        zoo.load("tiny", weights=tiny, pretrained=False)


def test_names_that_are_nothing(tiny, tmp_path):
    with pytest.raises(ZooError, match=r"There is no model 'tinny'\. Did you mean 'tiny'"):
        zoo.load("tinny")
    with pytest.raises(ZooError, match="There is no checkpoint"):
        zoo.load(tmp_path / "gone.ckpt")
    with pytest.raises(ZooError, match="a folder without a checkpoint"):
        zoo.load(tmp_path)
    torch.save(tiny, tmp_path / "bare.pth")
    with pytest.raises(ZooError, match="weights=FILE"):
        zoo.load(tmp_path / "bare.pth")


def test_a_class_that_is_no_zoo_module(shelf):
    write_manifest(shelf, "tiny", class_path="collections.OrderedDict")
    with pytest.raises(ZooError, match="not a ZooModule"):
        zoo.load("tiny", pretrained=False)
    write_manifest(shelf, "tiny", class_path="support_hub.Tinny")
    with pytest.raises(ZooError, match=r"support_hub\.Tinny"):
        zoo.load("tiny", pretrained=False)


# ---------------------------------------------------------------------- training checkpoints


def test_load_a_run_folder(tmp_path):
    model, folder = train(tmp_path / "run", width=6, betas=(0.5, 0.75))
    loaded = zoo.load(folder)
    assert equal(loaded, model.state_dict())
    assert loaded.hparams.width == 6
    assert list(loaded.hparams.betas) == [0.5, 0.75]
    assert not loaded.training
    assert equal(zoo.load(folder / "checkpoints" / "last.ckpt"), model.state_dict())
    assert not equal(zoo.load(folder, pretrained=False), model.state_dict())
    assert zoo.load(folder, pretrained=False, out=9).backbone.out_features == 9


def test_newest_checkpoint_where_there_is_no_last(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    for index, name in enumerate(["b.ckpt", "a.ckpt"]):
        model, run = train(tmp_path / "run")
        (folder / "last.ckpt").rename(folder / name)
        os.utime(folder / name, (1000 + index, 1000 + index))
    assert equal(zoo.load(run), model.state_dict())
    os.utime(folder / "b.ckpt", (2000, 2000))
    assert not equal(zoo.load(run), model.state_dict())


def test_keys_that_lightning_cli_adds_are_left_out(tmp_path):
    _, folder = train(tmp_path / "run")
    path = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"] |= {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
    torch.save(checkpoint, path)
    assert zoo.load(folder).hparams.width == 4


def test_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"w": torch.zeros(1)}}, path)
    with pytest.raises(ZooError, match="does not say which model"):
        zoo.load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ZooError, match="truncated"):
        zoo.load(path)


# ---------------------------------------------------------------------- add


def test_add_makes_load_work(shelf, tmp_path, cache):
    write_manifest(shelf, "tiny")
    state = Tiny().state_dict()
    file = tmp_path / "official.pth"
    torch.save({"model": {key.replace("backbone", "encoder"): value for key, value in state.items()}}, file)
    path = add("tiny", file)
    file.unlink()
    assert path.suffix == ".safetensors"
    assert cache in path.parents
    assert equal(zoo.load("tiny"), state)
    assert hub.verify(zoo.info("tiny"))[0] == "ok"


def test_add_refuses_and_leaves_the_cache_alone(shelf, tmp_path, cache, tiny):
    write_manifest(shelf, "other")
    torch.save(Tiny(width=9).state_dict(), tmp_path / "wide.pth")
    with pytest.raises(ZooError, match=r"wide\.pth do not fit Tiny: backbone\.weight has shape \(3, 9\)"):
        add("other", tmp_path / "wide.pth")
    (tmp_path / "page.pth").write_text("<!doctype html>")
    with pytest.raises(ZooError, match="web page"):
        add("other", tmp_path / "page.pth")
    with pytest.raises(ZooError, match="nothing to add"):
        add("tiny", tmp_path / "wide.pth")
    assert not cache.exists()
    with pytest.raises(ZooError, match="zoo add other FILE"):
        zoo.load("other")


def test_add_for_a_link_that_cannot_be_reached(shelf, tmp_path):
    write_manifest(shelf, "tiny", source={"kind": "https", "url": "http://127.0.0.1:1/x.pth"})
    state = Tiny().state_dict()
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ZooError, match="zoo add tiny FILE"):
        zoo.load("tiny")
    add("tiny", tmp_path / "x.pth")
    assert equal(zoo.load("tiny"), state)


# ---------------------------------------------------------------------- export


@pytest.mark.parametrize(("dtype", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_export(tmp_path, dtype, stored):
    model, folder = train(tmp_path / "run", width=6, betas=(0.5, 0.75))
    manifest = export(folder, "mine", tmp_path / "out", dtype=dtype, title="Mine", trained_on="noise", license="MIT")
    assert manifest == tmp_path / "out" / "mine.yaml"
    loaded = zoo.load(manifest)
    expected = {key: value.to(stored).float() for key, value in model.state_dict().items()}
    assert equal(loaded, expected)
    assert loaded.hparams.width == 6
    facts = find_manifest(manifest)
    assert (facts.title, facts.trained_on, facts.license) == ("Mine", "noise", "MIT")
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.sha256 == hub.sha256_of(tmp_path / "out" / "mine.safetensors")
    assert "2 steps" in facts.notes
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.safetensors", "mine.yaml"]


def test_export_refuses(tmp_path):
    _, folder = train(tmp_path / "run")
    manifest = export(folder, "mine", tmp_path)
    before = manifest.read_bytes(), (tmp_path / "mine.safetensors").read_bytes()
    train(tmp_path / "run")
    with pytest.raises(ZooError, match="exists already"):
        export(folder, "mine", tmp_path)
    assert (manifest.read_bytes(), (tmp_path / "mine.safetensors").read_bytes()) == before
    export(folder, "mine", tmp_path, force=True)
    assert manifest.read_bytes() != before[0]
    for bad in ("../x", "a b", ""):
        with pytest.raises(ZooError, match="name is letters"):
            export(folder, bad, tmp_path)
    with pytest.raises(ZooError, match="neither a training checkpoint"):
        export(tmp_path / "mine.safetensors", "again", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError, match="Cannot write"):
        export(folder, "mine", tmp_path / "file")


# ---------------------------------------------------------------------- DropPos


def test_droppos_official_checkpoint(shelf, tmp_path):
    write_manifest(shelf, "droppos-tiny", class_path="zoo.papers.droppos.DropPos", format="official",
                   init_args={**TINY_DROPPOS, "smoothing_distance": "squared"})  # fmt: skip
    trained = DropPos(**TINY_DROPPOS)
    official = {f"module.{key}": value for key, value in weights.to_official(trained.state_dict()).items()}
    file = tmp_path / "checkpoint-799.pth"
    torch.save({"epoch": 799, "state_dict": official, "optimizer": {"state": {}, "param_groups": []},
                "model": "DropPos_mae_vit_base_patch16_dec512d2b"}, file)  # fmt: skip
    add("droppos-tiny", file)
    model = zoo.load("droppos-tiny")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), trained.eval()(images))
    assert model.hparams.smoothing_distance == "squared"

    with pytest.raises(ZooError, match=r"backbone\.blocks\.1\."):
        zoo.load("droppos-tiny", depth=2)
    del official["module.decoder_pred.bias"]
    with pytest.raises(ZooError, match=r"decoder\.pred\.bias is missing"):
        zoo.load("droppos-tiny", weights=official)


def test_droppos_checkpoint_exports_to_plain_yaml(tmp_path):
    model = DropPos(**TINY_DROPPOS, warmup_epochs=0.0, lr=1e-3)
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(2, 3, 16, 16)), batch_size=2))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    manifest = export(tmp_path / "x.ckpt", "mine", tmp_path)
    assert yaml.safe_load(manifest.read_text())["init_args"]["embed_dim"] == 24
    assert find_manifest(manifest).paper == "droppos"
    loaded = zoo.load(manifest)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), model.eval()(images))

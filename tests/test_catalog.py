"""The catalogue: manifests are checked field by field, names are found or suggested, and no torch is needed."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch
import yaml
from support_hub import write_manifest

import zoo
from zoo import catalog
from zoo.errors import ZooError
from zoo.module import count_parameters, import_class
from zoo.paths import checkpoints_dir

GOOD = "a" * 64


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A catalogue with two models and a recipe."""
    monkeypatch.setattr(catalog, "checkpoints_dir", lambda: tmp_path)
    write_manifest(tmp_path, "tiny-a", results=[{"metric": "top-1 (%)", "value": 84.2, "source": "the paper"}])
    write_manifest(tmp_path, "tiny-b", parameters=15, init_args={"width": 4})
    return tmp_path


def test_import_is_light():
    code = "import sys, time; t = time.perf_counter(); import zoo; zoo.list_models(); zoo.info('droppos-vitb'); "
    code += "zoo.list_recipes(); print(time.perf_counter() - t); "
    code += (
        "heavy = {'torch', 'lightning', 'timm', 'requests', 'rich', 'huggingface_hub'}; print(heavy & set(sys.modules))"
    )
    seconds, heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split("\n", 1)
    assert heavy.strip() == "set()"
    assert float(seconds) < 2


def test_public_face():
    assert zoo.__version__
    assert set(zoo.__all__) <= set(dir(zoo))
    assert zoo.ZooError is ZooError


def test_list_and_info(shelf):
    assert zoo.list_models() == ["tiny-a", "tiny-b"]
    assert zoo.list_models("*-b") == ["tiny-b"]
    assert zoo.list_models("nothing*") == []
    manifest = zoo.info("tiny-a")
    assert manifest.source.code == "ab12"
    assert manifest.results[0].value == 84.2
    assert manifest.path == shelf / "paper" / "tiny-a.yaml"
    assert not manifest.verified
    text = str(manifest)
    assert "code ab12" in text
    assert "top-1 (%) 84.2" in text


def test_as_dict_is_the_yaml_again(shelf):
    values = zoo.info("tiny-a").as_dict()
    path = shelf / "paper" / "tiny-a.yaml"
    given = yaml.safe_load(path.read_text())
    assert {key: values[key] for key in given} == given
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    assert zoo.info("tiny-a").as_dict() == values


def test_unknown_names_are_suggested(shelf):
    with pytest.raises(ZooError, match=r"There is no model 'tinny-a'\. Did you mean 'tiny-a'"):
        zoo.info("tinny-a")
    with pytest.raises(ZooError, match="Did you mean 'droppos'"):
        catalog.paper_info("dropos")
    with pytest.raises(ZooError, match="Did you mean 'droppos/quickstart'"):
        catalog.recipe_info("droppos/quikstart")


def test_same_name_twice(shelf):
    (shelf / "other").mkdir()
    (shelf / "other" / "tiny-a.yaml").write_text((shelf / "paper" / "tiny-a.yaml").read_text())
    with pytest.raises(ZooError, match="models of the same name"):
        zoo.list_models()


def test_name_is_the_file_name(shelf):
    (shelf / "paper" / "tiny-a.yaml").rename(shelf / "paper" / "tiny-c.yaml")
    with pytest.raises(ZooError, match=r"tiny-c\.yaml: name is 'tiny-a'"):
        zoo.info("tiny-c")


HF = {"kind": "hf", "url": "owner/name", "revision": "b" * 40, "filename": "model.safetensors"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"licence": "MIT"}, "unknown field 'licence'. Did you mean 'license'"),
        ({"path": "/etc"}, "unknown field 'path'"),
        ({"title": None}, "title is missing"),
        ({"source": None}, "source is missing"),
        ({"source": "https://example.org"}, "source should be a mapping"),
        ({"source": {"kind": "http", "url": "x"}}, "source.kind is one of manual, https"),
        ({"source": {"kind": "https"}}, "source.url is missing"),
        ({"source": {"kind": "https", "url": "x", "sha": "1"}}, "unknown field 'source.sha'"),
        ({"source": {"kind": "file"}}, "source.filename is missing"),
        ({"source": {"kind": "file", "filename": "../other/w.safetensors"}}, "source.filename is a name without"),
        ({"source": {**HF, "revision": "main"}}, "source.revision is a commit"),
        ({"source": {**HF, "revision": None}}, "source.revision is missing"),
        ({"source": {**HF, "code": "1"}}, "source.code has no meaning"),
        ({"sha256": "abc"}, "sha256 is 64 hex digits"),
        ({"sha256": GOOD.upper()}, "sha256 is 64 hex digits"),
        ({"format": "onnx"}, "format is one of"),
        ({"class_path": "Tiny"}, "class_path is written"),
        ({"parameters": "many"}, "parameters should be a number"),
        ({"parameters": True}, "parameters should be a number"),
        ({"verified": "yes indeed"}, "verified should be true or false"),
        ({"init_args": ["a"]}, "init_args should be a mapping"),
        ({"results": [{"metric": "acc"}]}, r"results\[0\].value is missing"),
        ({"results": [{"metric": "acc", "value": 1.0}, {"metrics": "acc"}]}, r"unknown field 'results\[1\].metrics'"),
        ({"results": [1]}, r"results\[0\] should hold"),
        ({"name": "../x"}, "name is up to 100 letters"),
    ],
)
def test_bad_manifests_name_file_and_field(tmp_path, fields, message):
    path = write_manifest(tmp_path, "tiny", **fields)
    with pytest.raises(ZooError, match=message) as caught:
        catalog.read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- just\n- a list", "", "\x00"])
def test_files_that_are_no_manifest(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ZooError, match=r"x\.yaml"):
        catalog.read_manifest(path)


def test_source_identity_changes_with_what_it_points_at():
    sources = [catalog.Source(**{**HF, **change}) for change in ({}, {"revision": "c" * 40}, {"filename": "other"})]
    sources.append(catalog.Source(kind="https", url="owner/name"))
    assert len({source.identity for source in sources}) == 4


# ---------------------------------------------------------------------- what the zoo ships


def shipped() -> list[str]:
    return sorted(path.stem for path in checkpoints_dir().glob("*/*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_shipped_manifests_are_complete_and_fit_their_class(name):
    manifest = zoo.info(name)
    for fact in ("license", "citation", "url", "input", "parameters", "trained_on"):
        assert getattr(manifest, fact) is not None, f"{name}: {fact}"
    assert manifest.paper == manifest.path.parent.name
    assert manifest.paper in catalog.list_papers()
    cls = import_class(manifest.class_path)
    with torch.device("meta"):
        model = cls(**manifest.init_args)
    assert count_parameters(model) == manifest.parameters


def test_droppos_manifests_have_the_switches_of_the_official_code():
    for name in ("droppos-vitb", "droppos-vitl"):
        args = zoo.info(name).init_args
        assert args["smoothing_distance"] == "squared"
        assert args["smoothing_normalize"] == "column"
        assert args["smoothing_grid"] == "official"
        assert args["clip_mode"] == "per_tensor"


def test_every_recipe_and_paper_has_a_title():
    assert catalog.list_papers() == sorted(catalog.list_papers("*"))
    for slug in catalog.list_papers():
        paper = catalog.paper_info(slug)
        assert paper.title != slug
        assert paper.recipes, slug
    assert catalog.paper_info("droppos").domain == "images"  # a room without the word is "other"
    for name in zoo.list_recipes():
        assert catalog.recipe_info(name).title, name
    assert "droppos/quickstart" in zoo.list_recipes("droppos/q*")


def test_listing_stays_quick_with_many_models(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "checkpoints_dir", lambda: tmp_path)
    for index in range(300):
        write_manifest(tmp_path, f"model-{index:03}")
    start = time.perf_counter()
    assert len(zoo.list_models()) == 300
    assert zoo.info("model-123").name == "model-123"
    assert time.perf_counter() - start < 1

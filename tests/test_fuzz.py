"""Whatever is in a manifest, a checkpoint or a state dict: it is read whole or refused in one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from support_contract import checkpoint_difference
from support_hub import Tiny

from zoo.catalog import Manifest, read_manifest
from zoo.checkpoint_files import extract_state_dict, read_state_dict
from zoo.errors import ZooError
from zoo.recipes import load_yaml

quick = settings(
    max_examples=200, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

GOOD: dict[str, Any] = {
    "name": "tiny",
    "title": "A tiny model",
    "paper": "paper",
    "class_path": "support_hub.Tiny",
    "source": {"kind": "hf", "url": "a/b", "revision": "b" * 40, "filename": "w.safetensors"},
    "init_args": {"width": 4},
    "sha256": "a" * 64,
    "format": "official",
    "license": "MIT",
    "parameters": 15,
    "results": [{"metric": "top-1 (%)", "value": 84.2, "source": "the paper"}],
    "verified": True,
}
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5), st.dates()
)
keys = st.one_of(st.sampled_from([*GOOD, *GOOD["source"], "metric", "value"]), st.text(max_size=8), st.integers())
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=8
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tiny.yaml"


def refusal(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, or the line that refuses it; any other exception passes."""
    try:
        return function(), None
    except ZooError as caught:
        line = str(caught)
    assert len(line.splitlines()) == 1, line
    return None, line


def read_or_refuse(path: Path) -> Manifest | None:
    manifest, line = refusal(lambda: read_manifest(path))
    if line is not None:
        assert str(path) in line
        return None
    # What was read can be shown, written and read again.
    assert str(manifest)
    assert manifest.source.identity
    path.write_text(yaml.safe_dump(manifest.as_dict()), encoding="utf-8")
    assert str(read_manifest(path).as_dict()) == str(manifest.as_dict())
    return manifest


def test_the_good_one_is_good(path):
    path.write_text(yaml.safe_dump(GOOD))
    manifest = read_or_refuse(path)
    assert manifest is not None
    assert {key: manifest.as_dict()[key] for key in GOOD} == GOOD


@quick
@given(field=st.sampled_from([*GOOD, *(f"source.{key}" for key in GOOD["source"]), "results.0", "new"]), value=values)
@example(field="source.filename", value="a\0b")
@example(field="name", value="x" * 5000)
@example(field="init_args", value={1: 2})
@example(field="results", value=[{"metric": "m", "value": float("nan")}])
def test_manifest_with_any_value_in_any_field(tmp_path_factory, field, value):
    path = tmp_path_factory.mktemp("fuzz") / "tiny.yaml"
    content = copy.deepcopy(GOOD)
    if field.startswith("source."):
        content["source"][field.removeprefix("source.")] = value
    elif field == "results.0":
        content["results"][0] = value
    else:
        content[field] = value
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    read_or_refuse(path)


@quick
@given(values)
def test_manifest_that_is_anything(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("fuzz") / "tiny.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    assert read_or_refuse(path) is None


@quick
@given(st.binary(max_size=200) | st.text(alphabet="{}[]:,-&*!|>'\"%@#? \n\tabc019.", max_size=60).map(str.encode))
@example(b"a: 2024-99-99")
@example(b"!!timestamp x")
@example(b"!!int ''")
@example(b"&a {init_args: *a}")
@example(b"[" * 5000)
@example(b"? {a: b}\n: c")
@example(b"a: 1\n---\nb: 2")
def test_manifest_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "tiny.yaml"
    path.write_bytes(content)
    read_or_refuse(path)
    _, line = refusal(lambda: load_yaml(path))
    assert line is None or str(path) in line


@quick
@given(at=st.integers(0, 10**6), cut=st.integers(0, 30), more=st.text(max_size=10))
def test_manifest_torn_anywhere(tmp_path_factory, at, cut, more):
    path = tmp_path_factory.mktemp("fuzz") / "tiny.yaml"
    text = yaml.safe_dump(GOOD)
    at %= len(text)
    path.write_text(text[:at] + more + text[at + cut :], encoding="utf-8")
    read_or_refuse(path)


def test_manifest_nested_into_itself(path):
    path.write_text(yaml.safe_dump(GOOD).replace("width: 4", "width: &a [*a]"))
    with pytest.raises(ZooError, match="not nested into themselves"):
        read_manifest(path)


# ---------------------------------------------------------------------- checkpoints


def _files() -> dict[str, bytes]:
    import io

    state = {"w": torch.arange(300.0).reshape(3, 100), "steps": torch.tensor(3)}
    files = {"safetensors": save(state)}
    for name, zipped in (("zip", True), ("old", False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue()
    return files


FILES = _files()


@quick
@given(
    kind=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=8)), max_size=4),
    end=st.integers(0, 10**6) | st.none(),
)
def test_checkpoint_with_any_bytes_changed(tmp_path_factory, kind, changes, end):
    content = bytearray(FILES[kind])
    for at, new in changes:
        at %= len(content)
        content[at : at + len(new)] = new
    path = tmp_path_factory.mktemp("fuzz") / "w.pth"
    path.write_bytes(content if end is None else content[: end % len(content)])
    state, line = refusal(lambda: read_state_dict(path))
    if line is not None:
        assert str(path) in line
    else:
        assert all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())


@quick
@given(content=st.binary(max_size=300))
def test_checkpoint_of_any_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "w.pth"
    for start in (b"", b"PK\x03\x04", b"\x80\x02", (200).to_bytes(8, "little") + b"{"):
        path.write_bytes(start + content)
        with pytest.raises(ZooError):
            read_state_dict(path)


tensors = st.sampled_from([torch.zeros(()), torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, 4, dtype=torch.int8)])
leaves = scalars | tensors
parameters = ("encoder.weight", "encoder.bias", "backbone.weight", "backbone.bias", "module.encoder.weight")
names = st.sampled_from(["state_dict", "model", *parameters]) | st.text(max_size=6) | st.integers()
checkpoints = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=8
)


@settings(quick, max_examples=500)
@given(checkpoints)
@example({"backbone.weight": torch.zeros(3, 4), "backbone.bias": torch.zeros(3)})
@example({"backbone.weight": torch.zeros(3, 4, dtype=torch.int8), "backbone.bias": torch.zeros(3)})
@example({"backbone.weight": torch.zeros(3, 4, dtype=torch.complex64), "backbone.bias": torch.zeros(3)})
@example({"encoder.weight": torch.ones(3, 4), "backbone.weight": torch.zeros(3, 4), "encoder.bias": torch.zeros(3)})
@example({0: torch.zeros(3, 4), 1: torch.zeros(3)})
def test_state_dict_that_is_anything(checkpoint):
    model = Tiny()
    before = copy.deepcopy(dict(model.state_dict()))
    _, line = refusal(lambda: model.load_weights(extract_state_dict(checkpoint, "this")))
    if line is not None:
        assert not checkpoint_difference(before, dict(model.state_dict())), "refused, but loaded in part"
    else:
        assert not any(value.any() for value in model.state_dict().values()), "loaded something else"

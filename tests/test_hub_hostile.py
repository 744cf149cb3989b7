"""Servers that lie, crowds of processes, kills, caches that cannot be written, files that would run code."""

from __future__ import annotations

import builtins
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from support_hub import Tiny, fetch_in_processes, https_manifest, payload, serve, sha, start_fetch, write_manifest

import zoo
from zoo import download, hub
from zoo.catalog import read_manifest
from zoo.cli.run import main as lightning
from zoo.errors import ZooError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and no waiting between attempts."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BACKOFF", 0.0)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def nothing_cached(cache: Path) -> bool:
    return not list(cache.glob("blobs/*/*")) and not list(cache.glob("models/*"))


def saved(content: object, path: Path, **options: bool) -> bytes:
    torch.save(content, path, **options)
    return path.read_bytes()


# ---------------------------------------------------------------------- servers


def test_slow_server_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.3))
    with serve(payload()) as server:
        server.pause = 0.05  # a second in all, but never silent for longer than allowed
        assert hub.fetch(https_manifest(tmp_path, server.url)).read_bytes() == server.content
        assert len(server.requests) == 1


def test_server_that_falls_silent_is_asked_again_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.2))
    with serve(payload()) as server:
        server.pauses = [1.0]
        assert hub.fetch(https_manifest(tmp_path, server.url)).read_bytes() == server.content
        assert server.requests[0] is None
        assert server.requests[1].startswith("bytes=")
        assert len(server.requests) == 2


@pytest.mark.parametrize("pinned", [True, False])
def test_server_that_announces_too_much(tmp_path, cache, pinned):
    content = payload()
    with serve(content) as server:
        server.lie = 1000
        manifest = https_manifest(tmp_path, server.url, sha256=sha(content) if pinned else None)
        assert hub.fetch(manifest).read_bytes() == content  # it says itself that there is no more
        assert len(server.requests) == 2


def test_server_that_announces_too_much_and_knows_no_ranges(tmp_path, cache):
    with serve(payload()) as server:
        server.lie, server.ranges = 1000, False
        with pytest.raises(ZooError, match="Cannot download"):
            hub.fetch(https_manifest(tmp_path, server.url))
        assert len(server.requests) <= 2 * download.ATTEMPTS
    assert nothing_cached(cache)


@pytest.mark.parametrize("kind", ["safetensors", "zip"])
@pytest.mark.parametrize("pinned", [True, False])
def test_server_that_announces_too_little(tmp_path, cache, kind, pinned):
    content = payload() if kind == "safetensors" else saved({"w": torch.randn(50_000)}, tmp_path / "w.pth")
    with serve(content) as server:
        server.lie = -1000
        manifest = https_manifest(tmp_path, server.url, sha256=sha(content) if pinned else None)
        with pytest.raises(ZooError, match="truncated") as caught:
            hub.fetch(manifest)
        assert server.url in str(caught.value)
        assert nothing_cached(cache)
        server.lie = 0
        assert hub.fetch(manifest).read_bytes() == content


def test_old_pickle_cut_short_is_not_recorded(tmp_path, cache):
    content = saved({"w": torch.randn(50_000)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    with serve(content) as server:
        server.lie = -1000
        with pytest.raises(ZooError, match="damaged or truncated"):
            hub.fetch(https_manifest(tmp_path, server.url))
        assert nothing_cached(cache)


def test_a_page_in_place_of_the_rest_keeps_the_start(tmp_path, cache):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url)
        server.cuts = [300_000, 0, 0, 0, 0]
        with pytest.raises(ZooError):
            hub.fetch(manifest)
        server.content, server.ranges = b"<!-- portal --><html>please log in</html>", False
        server.pause = 0.01  # two bytes at a time
        with pytest.raises(ZooError, match="web page"):
            hub.fetch(manifest)
        server.content, server.ranges, server.pause = content, True, 0.0
        server.requests.clear()
        assert hub.fetch(manifest).read_bytes() == content
        assert int(server.requests[0].removeprefix("bytes=").rstrip("-")) > 200_000


def test_a_start_from_another_file_is_thrown_away(tmp_path, cache):
    other, content = payload(1), payload(2)
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url, sha256=sha(content))
        hub._partial("tiny", manifest.source).write_bytes(other[:300_000])
        assert hub.fetch(manifest).read_bytes() == content
        assert len(server.requests) == 2


def test_another_file_under_the_same_last_name_never_enters(tmp_path, cache):
    right, wrong = payload(1), payload(2)
    with serve(right) as one, serve(wrong) as two:
        manifest = https_manifest(tmp_path, two.url, sha256=sha(right))
        with pytest.raises(ZooError, match="another file"):
            hub.fetch(manifest)
        assert nothing_cached(cache)
        assert hub.fetch(https_manifest(tmp_path, one.url, sha256=sha(right))).read_bytes() == right
        other = https_manifest(tmp_path, two.url, "other", sha256=sha(wrong))
        assert hub.fetch(other).read_bytes() == wrong
        assert hub.fetch(other).name == hub.fetch(https_manifest(tmp_path, one.url, sha256=sha(right))).name


@pytest.mark.parametrize(
    "tail", ["?download=1", "%2e%2e%2f%2e%2e%2fpasswd", "x" * 300 + ".pth", "a%00b%0Ac.pth", "%2f"]
)
def test_odd_links_give_a_plain_file_inside_the_cache(tmp_path, cache, tail):
    with serve(payload()) as server:
        path = hub.fetch(https_manifest(tmp_path, server.url.replace("checkpoint.pth", tail)))
    assert path.parent == cache / "blobs" / sha(server.content)
    assert path.read_bytes() == server.content


# ---------------------------------------------------------------------- processes


def test_eight_processes_download_once(tmp_path, cache):
    content = payload(size=1_000_000)
    with serve(content) as server:
        server.pause = 0.02
        places = fetch_in_processes(https_manifest(tmp_path, server.url, sha256=sha(content)).path, 8)
        assert len(server.requests) == 1
    path = cache / "blobs" / sha(content) / "checkpoint.pth"
    assert places == [str(path)] * 8
    assert path.read_bytes() == content
    assert not list((cache / "partial").iterdir())


def test_a_killed_download_is_resumed_by_the_one_that_waited(tmp_path, cache):
    content = payload(size=1_000_000)
    with serve(content) as server:
        server.pause = 0.1
        manifest = https_manifest(tmp_path, server.url, sha256=sha(content))
        first = start_fetch(manifest.path)
        partial = hub._partial("tiny", manifest.source)
        deadline = time.monotonic() + 60
        while not partial.is_file() or partial.stat().st_size < 1_000_000:
            assert time.monotonic() < deadline, "the download did not start"
            time.sleep(0.01)
        second = start_fetch(manifest.path)
        time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        server.pause = 0.0
        place = second.communicate(timeout=60)[0].strip()
        assert [request is None for request in server.requests] == [True, False]
        assert int(server.requests[1].removeprefix("bytes=").rstrip("-")) >= 900_000
    assert Path(place).read_bytes() == content
    assert not list((cache / "partial").iterdir())


def through(kind: str, url: str) -> tuple[dict[str, str], dict[str, str]]:
    """A source that another client fetches from the local server, and the environment that it needs for that."""
    if kind == "gdrive":  # gdown takes other links too
        return {"kind": "gdrive", "url": url, "filename": "w.safetensors"}, {}
    source = {"kind": "hf", "url": "owner/name", "revision": "b" * 40, "filename": "w.safetensors"}
    return source, {"HF_ENDPOINT": url.rsplit("/", 2)[0], "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize("kind", ["gdrive", "hf"])
def test_a_killed_download_through_another_client_is_finished_by_the_next(tmp_path, cache, kind, pinned):
    content = payload(size=1_000_000)
    with serve(content) as server:
        server.pause, server.headers, server.etag = 0.1, {"X-Repo-Commit": "b" * 40}, f'"{sha(content)}"'
        source, environment = through(kind, server.url)
        path = write_manifest(tmp_path, source=source, sha256=sha(content) if pinned else None)
        first = start_fetch(path, **environment)
        deadline = time.monotonic() + 60
        while len(server.requests) < (2 if kind == "hf" else 1):  # the hub's client asks for the headers first
            assert time.monotonic() < deadline, "the download did not start"
            time.sleep(0.01)
        time.sleep(0.8)  # of two seconds
        first.send_signal(signal.SIGKILL)
        first.communicate()
        assert nothing_cached(cache)
        assert list((cache / "partial").iterdir()), "the kill left nothing to go on from: the test shows nothing"
        server.pause = 0.0
        (place,) = fetch_in_processes(path, 1, **environment)
    assert Path(place).read_bytes() == content
    assert not list((cache / "partial").iterdir())


@pytest.mark.parametrize("left", ["start", "other", "all"])
def test_what_a_killed_drive_download_left_is_used_if_it_fits(tmp_path, cache, left):
    content, other = payload(1), payload(2)
    with serve(content) as server:
        manifest = read_manifest(write_manifest(tmp_path, source=through("gdrive", server.url)[0], sha256=sha(content)))
        part = hub._partial("tiny", manifest.source)
        half = content[: len(content) // 2]
        part.with_name(f"{part.name}.gdriveabcdefgh.part").write_bytes({"start": half, "other": other[: len(half)]}.get(
            left, content))  # fmt: skip
        part.with_name(f"{part.name}.gdriveijklmnop.part").write_bytes(half[:10])
        assert hub.fetch(manifest).read_bytes() == content
        if left == "start":
            assert f"bytes={len(half)}-" in server.requests
    assert not list((cache / "partial").iterdir())


def test_a_drive_download_outlives_a_dropped_connection(tmp_path, cache):
    content = payload()
    with serve(content) as server:
        server.cuts = [600_000]
        source, _ = through("gdrive", server.url)
        assert hub.fetch(read_manifest(write_manifest(tmp_path, source=source))).read_bytes() == content
        assert server.requests[1].startswith("bytes=")  # gdown keeps what it got in whole pieces
        assert len(server.requests) == 2


_AS_NOBODY = """
import os, sys
from pathlib import Path
from zoo import hub
from zoo.catalog import read_manifest
import requests, rich.progress, filelock
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        print(hub.fetch(read_manifest(Path(path))))
    except hub.ZooError as error:
        print("error:", error)
"""


def test_a_cache_that_can_only_be_read(monkeypatch):
    # Not under tmp_path, which only its owner may enter: the reader is somebody else.
    with tempfile.TemporaryDirectory() as name, serve(payload()) as server:
        folder = Path(name)
        folder.chmod(0o755)
        monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
        here = https_manifest(folder, server.url, "here")
        place = hub.fetch(here)
        away = https_manifest(folder, server.url + "?away", "away")
        by_hand = read_manifest(write_manifest(folder, "by-hand"))
        for path in [folder / "cache", *(folder / "cache").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        paths = [str(manifest.path) for manifest in (here, away, by_hand)]
        done = subprocess.run([sys.executable, "-c", _AS_NOBODY, *paths], capture_output=True, text=True, env=env,
                              check=False, timeout=60)  # fmt: skip
        for path in [folder / "cache", *(folder / "cache").rglob("*")]:
            path.chmod(0o755)
    first, second, third = done.stdout.splitlines()
    assert first == str(place)
    assert "Cannot write to the cache" in second
    assert "set ZOO_CACHE" in second
    assert "zoo add by-hand FILE" in third


_ESCAPES = '{"a": {"sha256": "x", "size": 1, "filename": "../y", "source_sha256": "x"}}'


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"a": 1}', '{"a": {}}', '{"a": {"sha256": "x"}}', _ESCAPES])
def test_a_damaged_index_says_what_to_delete(tmp_path, cache, text):
    with serve(payload()) as server:
        manifest = https_manifest(tmp_path, server.url)
        hub.fetch(manifest)
        index = cache / "models" / "tiny.json"
        index.write_text(text)
        with pytest.raises(ZooError, match="delete it") as caught:
            hub.fetch(manifest)
        assert str(index) in str(caught.value)
        index.unlink()
        assert hub.fetch(manifest).read_bytes() == server.content


# ---------------------------------------------------------------------- files that would run code


class Calls:
    """Pickles to a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


EVIL = {
    "system": Calls(os.system, "touch executed"),
    "eval": Calls(builtins.eval, "open('executed', 'w')"),
    "exec": Calls(builtins.exec, "open('executed', 'w')"),
    "popen": Calls(subprocess.Popen, ["touch", "executed"]),
    "open": Calls(builtins.open, "executed", "w"),
    "getattr": Calls(builtins.getattr, "x", "upper"),
    "torch.load": Calls(torch.load, "executed"),
    "path": Calls(Path.touch, Path("executed")),
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("form", ["zip", "old", "plain", "protocol 0"])
def test_code_in_a_file_is_refused_unread_and_never_cached(tmp_path, cache, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": {"backbone.weight": torch.zeros(3, 4), "backbone.bias": EVIL[name]}}
    path = tmp_path / "evil.pth"
    if form in ("zip", "old"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=0 if form == "protocol 0" else 4))
    written = path.read_bytes()
    shelf = write_manifest(tmp_path, source={"kind": "manual", "url": "https://example.org"})
    for attempt in (lambda: zoo.load(shelf, weights=path), lambda: zoo.loading.add(shelf, path)):
        with pytest.raises(ZooError, match=r"evil\.pth") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with serve(written) as server, pytest.raises(ZooError, match=r"checkpoint\.pth"):
        hub.fetch(https_manifest(tmp_path, server.url, "evil"))
    assert nothing_cached(cache)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("link", [False, True])
def test_a_run_refuses_to_go_on_from_code(tmp_path, cache, monkeypatch, capsys, link):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.raiseExceptions", False)
    path = tmp_path / "evil.ckpt"
    path.write_bytes(saved({"state_dict": Tiny().state_dict(), "x": EVIL["system"]}, path))
    with serve(path.read_bytes()) as server:
        start = server.url.replace("checkpoint.pth", "evil.ckpt") if link else str(path)
        with pytest.raises(SystemExit) as stop:
            lightning(["run", "droppos/quickstart", "--run-dir", "run", "--model.depth", "1", "--ckpt_path", start,
                       "--trainer.callbacks", "null"])  # fmt: skip
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "evil.ckpt" in error
    assert "could run code" in error
    assert not (tmp_path / "executed").exists()
    assert nothing_cached(cache)

"""The cache: downloads resume, hashes hold, nothing half-written or foreign is ever handed out."""

from __future__ import annotations

import errno
import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from support_hub import Tiny, fetch_in_processes, https_manifest, payload, serve, sha, write_manifest

from zoo import download, hub
from zoo.catalog import read_manifest
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


def leftovers(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "partial").glob("*"))


def test_fetch_once_then_from_the_cache(tmp_path, cache):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url)
        path = hub.fetch(manifest)
        assert path.read_bytes() == content
        assert path == cache / "blobs" / sha(content) / "checkpoint.pth"
        assert hub.fetch(manifest) == path
        assert len(server.requests) == 1
    assert hub.fetch(manifest) == path  # the server is gone
    (record,) = json.loads((cache / "models" / "tiny.json").read_text()).values()
    assert record["sha256"] == sha(content)
    assert record["size"] == len(content)
    assert record["source"] == server.url
    assert record["date"].startswith("20")
    assert leftovers(cache) == []


def test_two_models_whose_urls_end_alike_stay_apart(tmp_path):
    with serve(payload(1)) as one, serve(payload(2)) as two:
        first, second = https_manifest(tmp_path, one.url, "a"), https_manifest(tmp_path, two.url, "b")
        assert hub.fetch(first).read_bytes() == one.content
        assert hub.fetch(second).read_bytes() == two.content
        # The same name, pointing elsewhere: a new release of the manifest, or somebody's own file.
        moved = https_manifest(tmp_path, two.url, "a")
        assert hub.fetch(moved).read_bytes() == two.content
        assert hub.fetch(first).read_bytes() == one.content
        assert len(one.requests) == 1


def test_resumes_after_a_cut_connection(tmp_path):
    content = payload()
    with serve(content) as server:
        server.cuts = [300_000, 200_000]
        assert hub.fetch(https_manifest(tmp_path, server.url)).read_bytes() == content
        starts = [0 if r is None else int(r.removeprefix("bytes=").rstrip("-")) for r in server.requests]
    assert len(starts) == 3
    assert 200_000 < starts[1] <= 300_000 < starts[2] <= 500_000  # at most a chunk of each cut is asked for again


def test_resumes_in_a_later_process(tmp_path, monkeypatch, cache):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url)
        server.cuts = [300_000, 0, 0, 0, 0]
        with pytest.raises(ZooError, match="Cannot download"):
            hub.fetch(manifest)
        assert leftovers(cache)
        assert not (cache / "models").exists()
        server.requests.clear()
        assert hub.fetch(manifest).read_bytes() == content
        assert server.requests[0] is not None
    assert leftovers(cache) == []


@pytest.mark.parametrize("etag", ['"v2"', None])
def test_a_file_that_changed_upstream_is_not_spliced(tmp_path, etag):
    old, new = payload(1), payload(2)
    with serve(old) as server:
        manifest = https_manifest(tmp_path, server.url)
        server.cuts = [300_000, 0, 0, 0, 0]
        server.etag = '"v1"' if etag else None
        with pytest.raises(ZooError):
            hub.fetch(manifest)
        server.content, server.etag = new, etag
        assert hub.fetch(manifest).read_bytes() == new


def test_server_without_range_support_starts_over(tmp_path):
    content = payload()
    with serve(content) as server:
        server.ranges = False
        server.cuts = [300_000]
        assert hub.fetch(https_manifest(tmp_path, server.url)).read_bytes() == content


def test_stale_partial_longer_than_the_file(tmp_path, cache):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url, sha256=sha(content))
        partial = hub._partial("tiny", manifest.source)
        partial.write_bytes(content + b"rest of something longer")
        assert hub.fetch(manifest).read_bytes() == content


def test_wrong_hash(tmp_path, cache):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url, sha256="0" * 64)
        with pytest.raises(ZooError) as caught:
            hub.fetch(manifest)
    assert sha(content) in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert server.url in str(caught.value)
    assert leftovers(cache) == []
    assert not list(cache.glob("blobs/*/*"))
    assert not (cache / "models" / "tiny.json").exists()


def test_first_hash_is_recorded_and_must_stay(tmp_path, cache):
    old, new = payload(1), payload(2)
    with serve(old) as server:
        manifest = https_manifest(tmp_path, server.url)
        path = hub.fetch(manifest)
        path.unlink()
        server.content = new
        with pytest.raises(ZooError, match="changed upstream") as caught:
            hub.fetch(manifest)
        assert sha(old) in str(caught.value)
        assert sha(new) in str(caught.value)
        server.content = old
        assert hub.fetch(manifest).read_bytes() == old
        path.unlink()
        server.content = new
        (cache / "models" / "tiny.json").unlink()  # as the message says
        assert hub.fetch(manifest).read_bytes() == new


def test_a_manifest_that_pins_another_hash_fetches_again(tmp_path):
    old, new = payload(1), payload(2)
    with serve(old) as server:
        hub.fetch(https_manifest(tmp_path, server.url, sha256=sha(old)))
        server.content, server.etag = new, '"v2"'
        assert hub.fetch(https_manifest(tmp_path, server.url, sha256=sha(new))).read_bytes() == new


def test_truncated_cache_file_is_fetched_again_and_verify_reads_all(tmp_path):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url)
        assert hub.verify(manifest)[0] == "not cached"
        path = hub.fetch(manifest)
        assert hub.verify(manifest) == ("ok", str(path))
        path.write_bytes(content[:-1] + b"\x01")  # same size
        status, detail = hub.verify(manifest)
        assert status == "damaged"
        assert sha(content) in detail
        path.write_bytes(content[:1000])
        assert hub.fetch(manifest).read_bytes() == content
        path.unlink()
        assert hub.verify(manifest)[0] == "damaged"


def test_a_login_page_is_not_recorded_as_weights(tmp_path, cache):
    with serve(b"<!DOCTYPE html><html>please log in</html>") as server:
        manifest = https_manifest(tmp_path, server.url)
        with pytest.raises(ZooError, match="web page") as caught:
            hub.fetch(manifest)
        assert server.url in str(caught.value)
        assert not (cache / "models" / "tiny.json").exists()
        server.content, server.etag = payload(), '"v2"'
        assert hub.fetch(manifest).read_bytes() == server.content


def test_server_errors(tmp_path):
    content = payload()
    with serve(content) as server:
        manifest = https_manifest(tmp_path, server.url)
        server.statuses = [503, 429]
        assert hub.fetch(manifest).read_bytes() == content
        server.requests.clear()
        server.statuses = [404]
        with pytest.raises(ZooError, match="answers 404"):
            hub.fetch(https_manifest(tmp_path, server.url + "?other"))
        assert len(server.requests) == 1  # not tried again


def test_no_network(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"http://127.0.0.1:{port}/droppos/weights.pth"
    with pytest.raises(ZooError) as caught:
        hub.fetch(https_manifest(tmp_path, url))
    message = str(caught.value)
    for part in (url, "weights.pth", "zoo add tiny FILE", "refused"):
        assert part in message
    assert "\n" not in message


def test_bad_url(tmp_path):
    for url in ("nonsense", "ftp://example.org/x", "http://"):
        with pytest.raises(ZooError, match="Cannot download"):
            hub.fetch(https_manifest(tmp_path, url))


def test_disk_too_small_is_said_before_it_is_filled(tmp_path, monkeypatch, cache):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with serve(payload()) as server:
        manifest = https_manifest(tmp_path, server.url)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "disk_usage", lambda path: usage)
            with pytest.raises(ZooError, match=r"full.*ZOO_CACHE"):
                hub.fetch(manifest)
        assert not (cache / "models" / "tiny.json").exists()
        assert hub.fetch(manifest).read_bytes() == server.content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_while_writing(tmp_path, cache):
    with serve(payload()) as server:
        manifest = https_manifest(tmp_path, server.url)
        partial = hub._partial("tiny", manifest.source)
        partial.symlink_to("/dev/full")  # every write to it fails with ENOSPC
        with pytest.raises(ZooError, match="full"):
            hub.fetch(manifest)
        assert not list(cache.glob("blobs/*/*"))
        assert not (cache / "models" / "tiny.json").exists()
        partial.unlink()
        assert hub.fetch(manifest).read_bytes() == server.content


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "taken" / "cache"))
    with pytest.raises(ZooError, match="set ZOO_CACHE"):
        hub.fetch(https_manifest(tmp_path, "http://127.0.0.1:1/x"))


def test_manual_source_says_what_to_do(tmp_path):
    source = {"kind": "manual", "url": "https://example.org/s", "code": "4gik", "filename": "vitb.pth"}
    manifest = read_manifest(write_manifest(tmp_path, source={**source, "instructions": "Needs a browser."}))
    with pytest.raises(ZooError) as caught:
        hub.fetch(manifest)
    for part in ("https://example.org/s", "4gik", "vitb.pth", "zoo add tiny FILE", "Needs a browser."):
        assert part in str(caught.value)


def test_file_source_lies_beside_the_manifest(tmp_path, cache):
    content = payload()
    path = write_manifest(tmp_path, source={"kind": "file", "filename": "w.safetensors"}, sha256=sha(content))
    with pytest.raises(ZooError, match="is missing"):
        hub.fetch(read_manifest(path))
    (path.parent / "w.safetensors").write_bytes(content)
    assert hub.fetch(read_manifest(path)) == path.parent / "w.safetensors"
    assert hub.verify(read_manifest(path))[0] == "ok"
    assert not cache.exists()
    (path.parent / "w.safetensors").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(ZooError, match=sha(content)):
        hub.fetch(read_manifest(path))
    assert hub.verify(read_manifest(path))[0] == "damaged"


def test_hugging_face_source_uses_the_pinned_revision(tmp_path, cache):
    content, revision = payload(), "b" * 40
    source = {"kind": "hf", "url": "owner/name", "revision": revision, "filename": "sub/model.safetensors"}
    path = write_manifest(tmp_path, source=source, sha256=sha(content))
    with serve(content) as server:
        server.headers = {"X-Repo-Commit": revision}
        server.etag = f'"{sha(content)}"'
        # The real client, in a process of its own because it reads its settings once.
        env = {"HF_ENDPOINT": server.url.rsplit("/", 2)[0], "HF_HUB_DISABLE_TELEMETRY": "1"}
        (place,) = fetch_in_processes(path, 1, **env)
        assert server.paths
        assert set(server.paths) == {f"/owner/name/resolve/{revision}/sub/model.safetensors"}
    assert place == str(cache / "blobs" / sha(content) / "model.safetensors")
    assert Path(place).read_bytes() == content
    assert leftovers(cache) == []


def test_hugging_face_without_network(tmp_path, monkeypatch):
    def fails(**kwargs):
        raise OSError(errno.EHOSTUNREACH, "no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    source = {"kind": "hf", "url": "owner/name", "revision": "b" * 40, "filename": "model.safetensors"}
    with pytest.raises(ZooError, match=r"owner/name/model.safetensors at b+.*no route to host.*zoo add tiny FILE"):
        hub.fetch(read_manifest(write_manifest(tmp_path, source=source)))


def test_google_drive_source(tmp_path, cache):
    content = payload()
    with serve(content) as server:  # gdown takes other links too, so this is the real client
        source = {"kind": "gdrive", "url": server.url, "filename": "w.safetensors"}
        path = hub.fetch(read_manifest(write_manifest(tmp_path, source=source)))
        assert path == cache / "blobs" / sha(content) / "w.safetensors"
        assert path.read_bytes() == content
        server.statuses = [404, 404]
        with pytest.raises(ZooError, match=r"Google Drive: .*404.*zoo add tiny FILE"):
            hub.fetch(read_manifest(write_manifest(tmp_path, source={**source, "url": server.url + "?other"})))
    assert leftovers(cache) == []


def test_google_drive_takes_a_bare_id_and_leaves_nothing_half_done(tmp_path, monkeypatch, cache):
    asked = []

    def refused(output, id, **kwargs):
        asked.append(id)
        Path(output).write_bytes(b"part of")
        raise RuntimeError("Too many users have viewed this file")

    monkeypatch.setattr("gdown.download", refused)
    with pytest.raises(ZooError, match=r"Too many users.*zoo add tiny FILE"):
        hub.fetch(read_manifest(write_manifest(tmp_path, source={"kind": "gdrive", "url": "1AbC"})))
    assert asked == ["1AbC"]
    assert leftovers(cache) == []


def test_store_converted(tmp_path, cache):
    manifest = read_manifest(write_manifest(tmp_path))
    original = tmp_path / "official.pth"
    torch.save({"anything": torch.zeros(1)}, original)
    state = Tiny().state_dict()
    path = hub.store_converted(manifest, original, state)
    assert hub.fetch(manifest) == path
    (record,) = json.loads((cache / "models" / "tiny.json").read_text()).values()
    assert record["source_sha256"] == hub.sha256_of(original)
    assert record["sha256"] == hub.sha256_of(path) != record["source_sha256"]
    assert hub.verify(manifest) == ("ok", str(path))

    path.write_bytes(b"damaged")
    with pytest.raises(ZooError, match="cached copy of tiny is damaged"):
        hub.fetch(manifest)
    other = tmp_path / "other.pth"
    torch.save({"anything": torch.ones(1)}, other)
    with pytest.raises(ZooError, match="the first file seen for tiny"):
        hub.store_converted(manifest, other, state)
    assert hub.store_converted(manifest, original, state) == path
    assert hub.verify(manifest)[0] == "ok"

    pinned = read_manifest(write_manifest(tmp_path, sha256="0" * 64))
    with pytest.raises(ZooError, match="0" * 64):
        hub.store_converted(pinned, original, state)


def test_store_converted_disk_full_keeps_what_was_there(tmp_path, cache, monkeypatch):
    manifest = read_manifest(write_manifest(tmp_path))
    original = tmp_path / "official.pth"
    torch.save({"anything": torch.zeros(1)}, original)
    path = hub.store_converted(manifest, original, Tiny().state_dict())

    def full(state, target):
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "save_safetensors", full)
    with pytest.raises(ZooError, match="is full"):
        hub.store_converted(manifest, original, Tiny().state_dict())
    assert leftovers(cache) == []
    assert hub.fetch(manifest) == path
    assert hub.verify(manifest)[0] == "ok"

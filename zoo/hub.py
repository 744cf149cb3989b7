"""The cache of weights: fetched once, kept by content, verified.

    <cache>/models/<name>.json        what was fetched: sha256, size, source, date
    <cache>/blobs/<sha256>/<file>     the files; a name can never hand out another model's weights
    <cache>/partial/, <cache>/locks/  downloads under way

`<cache>` is `zoo.paths.cache_dir()`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from zoo.catalog import Manifest, Source
from zoo.checkpoint_files import file_kind, read_checkpoint, save_safetensors
from zoo.download import DownloadError, download
from zoo.errors import ZooError
from zoo.paths import cache_dir

if TYPE_CHECKING:
    from torch import Tensor

Status = Literal["ok", "not cached", "damaged"]

_RECORD = {"sha256": str, "size": int, "filename": str, "source_sha256": str}  # what the index must hold of a file
_PATIENCE = 5.0  # seconds before a process says what it waits for


def fetch(manifest: Manifest) -> Path:
    """The file with a model's weights, downloaded first if the cache lacks it.

    A cached file is trusted if its size is right (`verify` reads all of it); a cache that can only be read will do for
    it. Safe to call from several processes: one downloads, the others wait.

    Raises `ZooError` if upstream cannot be reached or only serves people, if the file does not match its hash, or if
    the disk does not take it.
    """
    if manifest.source.kind == "file":
        return _file_beside(manifest)
    return _fetch(manifest.name, manifest.source, manifest.sha256, command=f"zoo add {manifest.name} FILE")


def fetch_url(url: str) -> Path:
    """The file behind a direct link, kept in the cache like a model's; its first hash is recorded and must stay."""
    return _fetch("url-" + _digest(url), Source(kind="https", url=url), None, command=None)


def verify(manifest: Manifest) -> tuple[Status, str]:
    """Reads a model's cached file in full and compares its hash: the status and a line that explains it."""
    if manifest.source.kind == "file":
        try:
            path = _file_beside(manifest)
        except ZooError as error:
            return "damaged", str(error)
        return "ok", f"{path}" + ("" if manifest.sha256 else " (the manifest holds no hash to compare with)")
    entry = _entry(manifest.name, manifest.source, manifest.sha256)
    if entry is None:
        manual = manifest.source.kind == "manual"
        return "not cached", f"zoo add {manifest.name} FILE" if manual else f"zoo download {manifest.name}"
    blob = _blob(entry)
    if not blob.is_file():
        return "damaged", f"{blob} is gone"
    found = sha256_of(blob)
    if found != entry["sha256"]:
        return "damaged", f"{blob} has sha256 {found}, recorded was {entry['sha256']}"
    return "ok", str(blob)


def store_converted(manifest: Manifest, original: Path, state_dict: Mapping[str, Tensor]) -> Path:
    """Records the file `original` that a user brought and caches `state_dict`, its content under our names.

    Raises `ZooError` if the hash of `original` is not the manifest's, or not that of the file recorded before.
    """
    with _lock(manifest.name), _disk_errors():
        source_sha256 = sha256_of(original)
        _check_hash(source_sha256, manifest.sha256, _read_index(manifest.name).get(manifest.source.identity), original,
                    manifest.name)  # fmt: skip
        partial = _partial(manifest.name, manifest.source).with_suffix(".safetensors")
        try:
            save_safetensors(state_dict, partial)
            _sync(partial)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        record = {"source_sha256": source_sha256, "original": original.name}
        filename = f"{manifest.name}.safetensors"
        return _keep(partial, sha256_of(partial), filename, manifest.name, manifest.source, record)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- fetching


def _fetch(name: str, source: Source, sha256: str | None, command: str | None) -> Path:
    if (blob := _cached(name, source, sha256)) is not None:
        return blob
    if source.kind == "manual":
        raise ZooError(_manual_instructions(name, source, damaged=_entry(name, source, sha256) is not None))
    with _lock(name):
        # Another process may have fetched it while this one waited.
        return _cached(name, source, sha256) or _download(name, source, sha256, command)


def _cached(name: str, source: Source, sha256: str | None) -> Path | None:
    entry = _entry(name, source, sha256)
    if entry is not None and (blob := _blob(entry)).is_file() and blob.stat().st_size == entry["size"]:
        return blob
    return None


def _download(name: str, source: Source, sha256: str | None, command: str | None) -> Path:
    recorded = _read_index(name).get(source.identity)
    partial, filename = _partial(name, source), _filename(source)
    pinned = sha256 is not None or recorded is not None
    with _disk_errors():
        for attempt in ("resumed", "fresh"):
            try:
                resumed = download(source, partial, pinned=pinned, label=name)
            except DownloadError as error:
                raise DownloadError(f"{error} {_by_hand(filename, command)}".strip()) from error
            _sync(partial)
            found = sha256_of(partial)
            try:
                file_kind(partial)
                _check_hash(found, sha256, recorded, _upstream(source), name)
                if not pinned:
                    read_checkpoint(partial)  # a file that is cut short would be recorded as the right one
                break
            except ZooError as error:
                partial.unlink()
                if resumed and pinned and attempt == "resumed":
                    continue  # its start may have come from another file
                # What arrived is named by where it came from: the partial file means nothing to the user.
                raise ZooError(str(error).replace(str(partial), _upstream(source))) from None
        return _keep(partial, found, filename, name, source, {"source_sha256": found})


def _file_beside(manifest: Manifest) -> Path:
    folder = manifest.path.parent if manifest.path else Path()
    path = folder / str(manifest.source.filename)
    if not path.is_file():
        raise ZooError(f"{path} is missing: {manifest.name} keeps its weights beside its manifest.")
    if manifest.sha256 and (found := sha256_of(path)) != manifest.sha256:
        raise ZooError(f"{path} has sha256 {found}, but the manifest of {manifest.name} says {manifest.sha256}.")
    return path


def _check_hash(found: str, pinned: str | None, recorded: dict[str, Any] | None, what: str | Path, name: str) -> None:
    if pinned is not None and found != pinned:
        raise ZooError(f"{what} has sha256 {found}, but the manifest of {name} says {pinned}: it is another file.")
    if pinned is None and recorded is not None and found != recorded["source_sha256"]:
        raise ZooError(
            f"{what} has sha256 {found}, but the first file seen for {name} had {recorded['source_sha256']}: it has "
            f"changed upstream. If you trust the new one, delete {_index_path(name)} and try again."
        )


def _keep(partial: Path, sha256: str, filename: str, name: str, source: Source, record: dict[str, Any]) -> Path:
    """Moves a complete file to its place by content, then records it; only then does it count as cached."""
    size = partial.stat().st_size
    blob = cache_dir() / "blobs" / sha256 / filename
    blob.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, blob)
    _sync_folder(blob.parent)
    record = {"sha256": sha256, "size": size, "filename": filename, "source": source.url, **record}
    record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    _write_index(name, {**_read_index(name), source.identity: record})
    return blob


def _manual_instructions(name: str, source: Source, damaged: bool) -> str:
    start = f"The cached copy of {name} is damaged" if damaged else f"{name} has to be downloaded by hand"
    code = f" (access code {source.code})" if source.code else ""
    which = f" the file {source.filename}" if source.filename else " its file"
    extra = f" {source.instructions}" if source.instructions else ""
    return f"{start}: get{which} from {source.url}{code}, then run `zoo add {name} FILE`.{extra}"


def _by_hand(filename: str, command: str | None) -> str:
    if command is None:
        return "Download the file in another way and give its path as weights."
    return f"If you can get {filename} in another way, `{command}` puts it into the cache."


def _upstream(source: Source) -> str:
    return f"{source.url}/{source.filename}" if source.kind == "hf" else str(source.url)


def _filename(source: Source) -> str:
    name = source.filename or unquote(urlsplit(source.url or "").path)
    return re.sub(r"[^\w.-]+", "_", Path(name).name)[-100:].lstrip(".") or "weights"  # any file system takes that


# ---------------------------------------------------------------------- the cache's files


def _entry(name: str, source: Source, sha256: str | None) -> dict[str, Any] | None:
    """What is recorded for this very source; None if nothing is, or if the manifest now pins another file."""
    entry = _read_index(name).get(source.identity)
    if entry is not None and sha256 not in (None, entry["source_sha256"]):
        return None
    return entry


def _blob(entry: dict[str, Any]) -> Path:
    return cache_dir() / "blobs" / entry["sha256"] / entry["filename"]


def _index_path(name: str) -> Path:
    return cache_dir() / "models" / f"{name}.json"


def _read_index(name: str) -> dict[str, Any]:
    path = _index_path(name)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries.values():
            if not all(isinstance(entry[key], kind) for key, kind in _RECORD.items()) or "/" in entry["filename"]:
                raise ValueError("it holds something else than records")
        return entries
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ZooError(f"{path} cannot be read ({error}): delete it to fetch {name} again.") from error


def _write_index(name: str, entries: dict[str, Any]) -> None:
    path = _index_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".json.new")
    try:
        new.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        _sync(new)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    os.replace(new, path)
    _sync_folder(path.parent)


def _partial(name: str, source: Source) -> Path:
    folder = cache_dir() / "partial"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{_digest(source.identity)}.part"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder = cache_dir() / "locks"
    with _disk_errors():
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{name}.lock")
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            print(f"Waiting for another process that fetches {name} ...", file=sys.stderr, flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turns what the disk refuses into a line for the user; files already in the cache are untouched by then."""
    try:
        yield
    except OSError as error:
        root = cache_dir()
        if error.errno == errno.ENOSPC:
            raise ZooError(
                f"The disk of the cache {root} is full ({error.strerror}): free some space or set ZOO_CACHE to "
                "another disk; a download goes on where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
            raise ZooError(f"Cannot write to the cache {root} ({error}): set ZOO_CACHE to another folder.") from error
        raise


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

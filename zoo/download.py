"""Getting one file from upstream: https with resume, the Hugging Face hub, Google Drive."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint_files import looks_like_page
from zoo.errors import ZooError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from requests import Response

    from zoo.catalog import Source

ATTEMPTS = 4  # in a row without a new byte
BACKOFF = 1.0  # seconds before the second attempt, doubled each time
TIMEOUT = (10, 60)  # seconds: to connect, between two reads
CHUNK = 1 << 16  # bytes
_HEAD = 512  # bytes that tell a web page from weights


class DownloadError(ZooError):
    """Upstream could not be reached or did not give the file."""


def download(source: Source, target: Path, *, pinned: bool, label: str) -> bool:
    """Gets what `source` points at into `target` (complete on return; resumed if `target` holds the start of it).

    Returns True if the file was put together from more than one answer.

    Args:
        pinned: the sha256 of the whole is known, so a resumed file that does not fit together will be noticed.
        label: name for the progress bar.

    Raises `DownloadError` if upstream cannot be reached or refuses, `OSError` if the disk does not take the file.
    """
    if source.kind == "https":
        return _https(str(source.url), target, pinned, label)
    if source.kind == "hf":
        _huggingface(source, target)
    elif source.kind == "gdrive":
        return _google_drive(str(source.url), target, pinned)
    else:
        raise ValueError(source.kind)
    return False


# ---------------------------------------------------------------------- https


def _https(url: str, target: Path, pinned: bool, label: str) -> bool:
    import requests
    import urllib3

    validator = target.with_name(target.name + ".validator")
    attempt, best, resumed = 0, _size(target), False
    with _progress(label) as progress, requests.Session() as session:
        while True:
            resumed |= _size(target) > 0
            try:
                if _https_attempt(session, url, target, validator, pinned, progress):
                    validator.unlink(missing_ok=True)
                    return resumed
                reason = "the connection ended early"
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
                raise DownloadError(f"Cannot download {url}: {_reason(error)}.") from error
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                reason = _reason(error)
            # Only new ground counts as progress: a server that lies about the length would be asked for ever.
            attempt = 0 if _size(target) > best else attempt + 1
            best = max(best, _size(target))
            if attempt >= ATTEMPTS:
                raise DownloadError(f"Cannot download {url}: {reason}.")
            time.sleep(BACKOFF * 2**attempt)


def _https_attempt(session: Any, url: str, target: Path, validator: Path, pinned: bool, progress: Any) -> bool:
    """One request; True if `target` is complete after it."""
    start = _size(target)
    stored = _read_validator(validator, url)
    if start and stored is None and not pinned:
        start = 0  # nothing says that the rest still belongs to this start
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if stored is not None:
            headers["If-Range"] = stored
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:
            if start and response.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{start}":
                return True  # there is no more: the length announced before was wrong
            target.unlink(missing_ok=True)
            return False
        if response.status_code in (408, 425, 429) or response.status_code >= 500:
            response.raise_for_status()
        if not response.ok:
            raise DownloadError(f"Cannot download {url}: the server answers {response.status_code} {response.reason}.")
        if response.status_code != 206 or _range_start(response) != start:
            if response.status_code == 206:
                target.unlink(missing_ok=True)
                return False
            start = 0
        length = response.headers.get("Content-Length", "")
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"  # against what was asked for
        total = start + int(length) if length.isdigit() and not encoded else None
        if total is not None:
            _check_room(target, total - start)
        pieces = _pieces(response)
        first = b""
        while start == 0 and len(first) < _HEAD and (piece := next(pieces, b"")):
            first += piece
        if start == 0 and looks_like_page(first):
            raise DownloadError(f"Cannot download {url}: the server answers with a web page, often a login.")
        _store_validator(response, url, validator)
        progress(start, total)
        with target.open("ab" if start else "wb") as file:
            for piece in itertools.chain([first], pieces):
                file.write(piece)
                progress(file.tell(), total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or _size(target) == total


def _pieces(response: Response) -> Iterator[bytes]:
    """The body as it arrives. Unlike `iter_content` this loses nothing of it when the connection breaks."""
    while piece := response.raw.read1(CHUNK, decode_content=True):
        yield piece


def _read_validator(path: Path, url: str) -> str | None:
    """What the server called the version that the partial file is from."""
    try:
        stored = json.loads(path.read_text())
        return str(stored["validator"]) if stored["url"] == url else None
    except (OSError, ValueError, TypeError, KeyError):  # none, or torn by a kill
        return None


def _store_validator(response: Response, url: str, path: Path) -> None:
    etag = response.headers.get("ETag", "")
    strong = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    if strong:
        path.write_text(json.dumps({"url": url, "validator": strong}))
    else:
        path.unlink(missing_ok=True)


def _range_start(response: Response) -> int:
    value = response.headers.get("Content-Range", "")  # "bytes 100-199/200"
    with contextlib.suppress(ValueError, IndexError):
        return int(value.split()[1].split("-")[0])
    return -1


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free", str(target))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """Clients wrap the socket's own words several times over: the innermost ones are for people."""
    while isinstance(deeper := error.__cause__ or getattr(error, "reason", None) or error.__context__, BaseException):
        error = deeper
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300].rstrip(".")


@contextlib.contextmanager
def _progress(label: str) -> Any:
    """A bar on stderr for people who watch; nothing in a pipe or log."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


# ---------------------------------------------------------------------- services with a client of their own


def _huggingface(source: Source, target: Path) -> None:
    import huggingface_hub

    staging = target.with_name(target.name + ".hf")  # its own metadata makes this resumable
    where = f"{source.url}/{source.filename} at {source.revision} on the Hugging Face hub"
    try:
        got = huggingface_hub.hf_hub_download(
            repo_id=str(source.url), filename=str(source.filename), revision=source.revision, local_dir=staging
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise DownloadError(f"Cannot download {where}: {_reason(error)}.") from error
    os.replace(got, target)
    shutil.rmtree(staging, ignore_errors=True)


def _google_drive(url: str, target: Path, pinned: bool) -> bool:
    import gdown

    where: dict[str, Any] = {"url": url} if "/" in url else {"id": url}
    staging = target.with_name(target.name + ".gdrive")
    # What a killed or broken download left. gdown cannot tell whether it still belongs to the file; a hash can.
    left = sorted(target.parent.glob(f"{staging.name}????????.part"), key=_size)
    resumed = pinned and bool(left) and _size(left[-1]) > 0
    for part in left[:-1] if resumed else left:
        part.unlink()
    try:
        got = gdown.download(
            output=str(staging), quiet=not os.isatty(2), use_cookies=False, timeout=TIMEOUT, resume=resumed,
            retries=ATTEMPTS - 1, **where,
        )  # fmt: skip
    except Exception as error:
        staging.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        if resumed:  # perhaps what was left is more than there is: from the start, then
            left[-1].unlink(missing_ok=True)
            return _google_drive(url, target, pinned)
        raise DownloadError(f"Cannot download {url} from Google Drive: {_reason(error)}.") from error
    if got is None or not staging.is_file():
        raise DownloadError(f"Google Drive gave no file for {url}.")
    os.replace(staging, target)
    return resumed

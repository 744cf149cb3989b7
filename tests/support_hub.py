"""What the tests of catalogue, hub, loading and command line share: a tiny model, manifests, a file server."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from torch import Tensor, nn

from zoo.catalog import Manifest, read_manifest
from zoo.module import ZooModule


class Tiny(ZooModule):
    """A linear layer; official name of its keys `encoder.*`; reads text files of numbers."""

    def __init__(self, width: int = 4, out: int = 3, betas: tuple[float, float] = (0.9, 0.95)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def preprocess(self, raw: Any) -> Tensor:
        return torch.tensor([[float(word) for word in Path(raw).read_text().split()]])

    @classmethod
    def convert_state_dict(cls, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key.replace("encoder.", "backbone."): value for key, value in state_dict.items()}

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Silent(ZooModule):
    """Has no preprocess."""


def write_manifest(folder: Path, name: str = "tiny", /, **fields: Any) -> Path:
    """A manifest of `Tiny` under `folder/paper/name.yaml`; `fields` change or (None) remove entries."""
    values = {
        "name": name,
        "title": "A tiny model",
        "paper": "paper",
        "class_path": "support_hub.Tiny",
        "source": {"kind": "manual", "url": "https://example.org/share", "code": "ab12"},
        **fields,
    }
    path = folder / "paper" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return path


def https_manifest(folder: Path, url: str, name: str = "tiny", **fields: Any) -> Manifest:
    return read_manifest(write_manifest(folder, name, source={"kind": "https", "url": url}, **fields))


def payload(seed: int = 0, size: int = 200_000) -> bytes:
    """A safetensors file of about 4 * size bytes."""
    return save({"w": torch.randn(size, generator=torch.Generator().manual_seed(seed))})


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_FETCH = """
import sys
from pathlib import Path
from zoo import hub
from zoo.catalog import read_manifest
print(hub.fetch(read_manifest(Path(sys.argv[1]))))
"""


def start_fetch(manifest: Path, **environment: str) -> subprocess.Popen[str]:
    """A process that fetches a model and prints where it is."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = [sys.executable, "-c", _FETCH, str(manifest)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def fetch_in_processes(manifest: Path, count: int, **environment: str) -> list[str]:
    """What `hub.fetch` gives in processes that run at the same time."""
    workers = [start_fetch(manifest, **environment) for _ in range(count)]
    places = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    return places


class FileServer:
    """Serves `content` with Range support.

    Attributes:
        cuts: how many bytes of the body the next answers give before the connection drops.
        statuses: error codes of the next answers, which have no body.
        headers: more headers of every answer.
        lie: added to the length that is announced.
        pauses: seconds to wait in the middle of the next answers.
        pause: seconds to wait after every twentieth of the body.
        requests, paths: the Range header (or None) and the path of every request so far.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = '"v1"'
        self.ranges = True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.headers: dict[str, str] = {}
        self.lie = 0
        self.pauses: list[float] = []
        self.pause = 0.0
        self.requests: list[str | None] = []
        self.paths: list[str] = []
        self.url = ""

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.requests.append(wanted)
        self.paths.append(request.path)
        if self.statuses:
            request.send_response(self.statuses.pop(0))
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        same = request.headers.get("If-Range") in (None, self.etag)
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = self.content[start:]
        if start and not body:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        for name, value in self.headers.items():
            request.send_header(name, value)
        if self.etag:
            request.send_header("ETag", self.etag)
        request.send_header("Content-Length", str(len(body) + self.lie))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.cuts:
            request.wfile.write(body[: self.cuts.pop(0)])
            return
        piece = max(1, len(body) // 20)
        middle = self.pauses.pop(0) if self.pauses else 0.0
        with contextlib.suppress(OSError):  # the client has left
            for at in range(0, len(body), piece):
                request.wfile.write(body[at : at + piece])
                time.sleep(self.pause + (middle if at == 10 * piece else 0.0))


@contextmanager
def serve(content: bytes) -> Iterator[FileServer]:
    """A `FileServer` on a free local port, in a thread."""
    server = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.handle(self)
            self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/download/checkpoint.pth"
        thread = threading.Thread(target=http.serve_forever, args=[0.01], daemon=True)
        thread.start()
        yield server
        http.shutdown()
        thread.join()

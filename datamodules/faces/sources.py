"""Face images without labels from where they lie: official HDF5 containers, folders, WebDataset shards; or rendered."""

from __future__ import annotations

import io
import os
import tarfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from datamodules.faces.renderer import FaceRenderer
from datamodules.images import IMAGE_SUFFIXES, ImageDataset
from zoo.errors import ZooError
from zoo.extras import require

RENDERED = "rendered"
CONTAINERS = {
    "vggface2": "vggface2_train.h5",
    "300wlp": "300w_lp.h5",
    "widerface": "widerface.h5",
    "imdbface": "imdbface.h5",
    "affectnet": "affectnet_train.h5",
    "flickr": "flickr_train.h5",
}
"""Names of the data sets and of their files in the official code; "all" means every one that is there."""


class HDF5Images:
    """Encoded images of the official container: one data set `images` of byte strings of any length.

    The file is opened by the process that reads, and again after a fork.
    """

    def __init__(self, path: Path) -> None:
        require("h5py", extra="faces", why="reading HDF5 containers takes h5py")
        import h5py

        self.path = path
        try:
            with h5py.File(path, "r") as file:
                self.count = _count_blobs(path, file)
        except OSError as error:
            # h5py says "Unable to synchronously open file (file signature not found)": the reason is in the brackets.
            reason = str(error).partition("(")[2].split(", sblock")[0].rstrip(")") or str(error)
            raise ZooError(f"{path} is no readable HDF5 file ({reason}).") from error
        if not self.count:
            raise ZooError(f"{path} holds no images.")
        self._file: Any = None
        self._owner = -1

    def __len__(self) -> int:
        return self.count

    def __call__(self, index: int) -> bytes:
        if self._owner != os.getpid():
            import h5py

            self._file, self._owner = h5py.File(self.path, "r")["images"], os.getpid()
        return np.asarray(self._file[index], dtype=np.uint8).tobytes()

    def name(self, index: int) -> str:
        return f"{self.path}, image {index}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_owner": -1}


def _count_blobs(path: Path, file: Any) -> int:
    """How many encoded images an open container holds. Raises `ZooError` for any other layout."""
    import h5py

    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        found = ", ".join(f"{type(file[name]).__name__.lower()} {name!r}" for name in list(file)[:5]) or "nothing"
        raise ZooError(f"{path} has no data set 'images' (found {found}): encoded pictures belong there.")
    element = h5py.check_vlen_dtype(images.dtype)
    if images.ndim != 1 or element is None or np.dtype(element).kind not in "ui" or np.dtype(element).itemsize != 1:
        kind = f"runs of {np.dtype(element)}" if element is not None else str(images.dtype)
        raise ZooError(
            f"{path}: 'images' has shape {images.shape} of {kind}; the official container is one-dimensional, "
            "an encoded JPEG or PNG (uint8, any length) each. Pixels do not fit: encode them first."
        )
    return len(images)


class FolderImages:
    """Files under a folder, at any depth, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not self.paths:
            raise ZooError(f"No images under {root} (looked for {', '.join(IMAGE_SUFFIXES)}).")

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        return str(self.paths[index])


class ShardImages:
    """WebDataset shards (`.tar`): the image files in them, found by one pass over the headers, read at random.

    Random access is what an exact resume needs; the usual readers of such shards only stream.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = list(shards)
        self.entries: list[tuple[int, int, int, str]] = []
        for number, shard in enumerate(self.shards):
            try:
                with tarfile.open(shard, "r:") as tar:
                    for member in tar:
                        if member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                            self.entries.append((number, member.offset_data, member.size, member.name))
            except (tarfile.TarError, OSError) as error:
                raise ZooError(f"{shard} is no readable, uncompressed tar file ({error}).") from error
        if not self.entries:
            raise ZooError(f"No images in {', '.join(map(str, self.shards[:3]))}.")

    def __len__(self) -> int:
        return len(self.entries)

    def __call__(self, index: int) -> bytes:
        number, offset, size, _ = self.entries[index]
        with self.shards[number].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def name(self, index: int) -> str:
        number, _, _, name = self.entries[index]
        return f"{self.shards[number]}, {name}"


class Chained:
    """Several sources one after the other."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()

    def __len__(self) -> int:
        return self.ends[-1]

    def _find(self, index: int) -> tuple[Any, int]:
        part = bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)

    def __call__(self, index: int) -> bytes:
        part, at = self._find(index)
        return part(at)

    def name(self, index: int) -> str:
        part, at = self._find(index)
        return part.name(at)


def decode(blob: bytes, exif: bool = True) -> Image.Image:
    """An encoded image to PIL, upright by its EXIF note if `exif`. Raises `OSError` for what is none."""
    if not blob:
        raise OSError("it is empty")
    try:
        image = Image.open(io.BytesIO(blob))
    except UnidentifiedImageError as error:  # its own text shows a memory address
        raise OSError("it is no image that Pillow knows") from error
    return ImageOps.exif_transpose(image) if exif else image


def open_source(root: str | Path, dataset: str = "all") -> Any:
    """Encoded images: `source(index) -> bytes`, `len`, `source.name(index)`.

    Args:
        root: a `.h5` file, a folder with the official containers, a `.tar` file, a folder of `.tar` files, or a folder
            of images at any depth.
        dataset: which of the official containers (`CONTAINERS`) in a folder; "all" takes every one that is there.

    Raises `ZooError` that says what was found instead.
    """
    path = Path(root).expanduser()
    if path.suffix in (".h5", ".hdf5") and path.is_file():
        return HDF5Images(path)
    if path.suffix == ".tar" and path.is_file():
        return ShardImages([path])
    if path.is_file():
        raise ZooError(f"{path} is neither .h5, .hdf5 nor .tar: give such a file, or a folder, with --data.root.")
    if not path.is_dir():
        raise ZooError(f"There is no data folder or file {str(path)!r}: give one with --data.root.")
    if dataset != "all" and dataset not in CONTAINERS:
        raise ZooError(f"dataset is 'all' or one of {', '.join(CONTAINERS)}, not {dataset!r}.")
    if dataset != "all":
        file = path / CONTAINERS[dataset]
        if not file.is_file():
            raise ZooError(f"There is no {CONTAINERS[dataset]} in {path}.")
        return HDF5Images(file)
    found = [path / name for name in CONTAINERS.values() if (path / name).is_file()]
    if found:
        return Chained([HDF5Images(file) for file in found])
    shards = sorted(path.glob("*.tar"))
    if shards:
        return ShardImages(shards)
    train = path / "train"
    return FolderImages(train if train.is_dir() else path)


class _Reader:
    """What `ImageDataset` calls: index among the chosen ones to a PIL image."""

    def __init__(self, source: Any, chosen: np.ndarray, exif: bool) -> None:
        self.source, self.chosen, self.exif = source, chosen, exif

    def __call__(self, index: int) -> Image.Image:
        return decode(self.source(int(self.chosen[index])), self.exif)


class _Names(Sequence[str]):
    def __init__(self, source: Any, chosen: np.ndarray) -> None:
        self.source, self.chosen = source, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: Any) -> Any:
        return self.source.name(int(self.chosen[index]))


class _RenderedReader:
    """Rendered pictures, each drawn once and kept."""

    def __init__(self, renderer: FaceRenderer, first: int, count: int) -> None:
        self.renderer, self.first = renderer, first
        self.kept: list[np.ndarray | None] = [None] * count

    def __call__(self, index: int) -> Image.Image:
        pixels = self.kept[index]
        if pixels is None:
            pixels = self.kept[index] = self.renderer(self.first + index).image
        return Image.fromarray(pixels)


def open_faces(
    root: str | Path,
    split: Literal["train", "val"],
    transform: Callable[[Image.Image], Any] | None = None,
    *,
    dataset: str = "all",
    val_images: int = 0,
    on_bad_image: Literal["error", "skip"] = "error",
    exif: bool = True,
    rendered: dict[str, int] | None = None,
) -> ImageDataset | None:
    """Unlabelled faces of a split (all labels are 0), or None if nothing is held out.

    Args:
        root, dataset: see `open_source`; "rendered" draws faces (`FaceRenderer`).
        val_images: how many are held out: evenly spread over the collection, the same ones each time.
        on_bad_image: see `ImageDataset`. exif: turn images upright by their EXIF note (the official code does not).
        rendered: `size`, `images`, `identities` and `seed` of rendered faces.
    """
    if val_images < 0:
        raise ZooError(f"val_images is 0 or more, not {val_images}.")
    if str(root) == RENDERED:
        settings = dict(rendered or {})
        count = settings.pop("images", 2048)
        first, number = (0, count) if split == "train" else (count, val_images)
        if not number:
            return None
        reader: Any = _RenderedReader(FaceRenderer(**settings), first, number)
        return ImageDataset(reader, [f"face {first + i}" for i in range(number)], [0] * number, ["face"], transform)
    source = open_source(root, dataset)
    if val_images >= len(source):
        raise ZooError(
            f"{root} has {len(source)} images, but {val_images} are to be held out, which leaves none to train on: "
            "lower --data.val_images (0 holds out none)."
        )
    held_out = (
        np.linspace(0, len(source) - 1, val_images).round().astype(np.int64) if val_images else np.zeros(0, np.int64)
    )
    chosen = held_out if split == "val" else np.setdiff1d(np.arange(len(source)), held_out)
    if not len(chosen):
        return None
    reader = _Reader(source, chosen, exif)
    return ImageDataset(reader, _Names(source, chosen), [0] * len(chosen), ["face"], transform, on_bad_image)

"""`zoo fractals`: draw systems, and render them to sheets and data sets."""

from __future__ import annotations

import io
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.errors import ZooError

fractals = typer.Typer(
    name="fractals",
    help="Fractals: draw systems (sample), render sheets and data sets (render). Needs the extra 'fractals'.",
    epilog="Example:\n\nzoo fractals render sheet.png --classes 100",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Kind(StrEnum):
    single = "single"
    multi = "multi"


class Layout(StrEnum):
    folder = "folder"
    webdataset = "webdataset"


class RenderMode(StrEnum):
    fast = "fast"
    exact = "exact"


SeedOption = Annotated[int, typer.Option(help="Of all draws.")]
_OTHER_PICTURES = (".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svg", ".pdf")
_SETS_ONLY = ("per_class", "kind", "layout", "shard")
_WIDEST_SHEET = 30_000
ForceOption = Annotated[
    bool, typer.Option("--force", help="Overwrite what is there (of a folder, earlier renderings).")
]


@fractals.command("sample", epilog="Example:\n\nzoo fractals sample systems.npz --count 1000 --seed 7")
def sample(
    output: Annotated[Path, typer.Argument(metavar="FILE.npz", help="File to write.")],
    count: Annotated[int, typer.Option(min=1, help="Number of systems.")] = 1000,
    seed: SeedOption = 0,
    min_maps: Annotated[int, typer.Option(min=2, help="Fewest maps of a system.")] = 2,
    max_maps: Annotated[int, typer.Option(min=2, help="Most maps of a system.")] = 4,
    sigma: Annotated[
        tuple[float, float] | None, typer.Option(help="Range of the sigma-factor; by default (5+n)/2 to (6+n)/2.")
    ] = None,
    uniform: Annotated[bool, typer.Option("--uniform", help="Singular values uniform, by rejection.")] = False,
    force: ForceOption = False,
) -> None:
    """Draw iterated function systems into a file that data.systems and --systems take."""
    from datamodules.fractals.files import write_systems
    from datamodules.fractals.systems import SeededSystems

    if output.suffix != ".npz":
        raise ZooError(f"Systems are written to a .npz file, not {output}.")
    if min_maps > max_maps:
        raise ZooError(f"--min-maps {min_maps} is more than --max-maps {max_maps}.")
    if sigma is not None and sigma[0] > sigma[1]:
        raise ZooError(f"--sigma is a range, the smaller number first, not {sigma[0]:g} {sigma[1]:g}.")
    _refuse_existing(output, force)
    systems = SeededSystems(count, seed, (min_maps, max_maps + 1), sigma, "uniform" if uniform else "paper")
    write_systems(output, [systems(index) for index in range(count)])
    print(f"{output}: {count} systems of {min_maps} to {max_maps} maps")


@fractals.command(
    "render",
    epilog="Examples:\n\nzoo fractals render sheet.png --classes 100\n\n"
    "zoo fractals render my_fractals --classes 1000 --per-class 100\n\n"
    "zoo fractals render shards --kind multi --classes 1000 --per-class 10 --layout webdataset",
)
def render(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="FILE.png for a sheet of classes, else a folder.")],
    classes: Annotated[int, typer.Option(min=1, help="Number of systems, a class each.")] = 100,
    per_class: Annotated[int, typer.Option(min=1, help="Pictures a class (data sets).")] = 10,
    size: Annotated[int, typer.Option(help="Side of a picture in pixels; of a cell of a sheet.")] = 224,
    kind: Annotated[Kind, typer.Option(help="One fractal a picture, or several with a list of labels.")] = Kind.single,
    layout: Annotated[Layout, typer.Option(help="A folder a class (or labels.csv), or tar shards.")] = Layout.folder,
    systems: Annotated[Path | None, typer.Option(help="File of systems (.npz, the official .pkl).")] = None,
    seed: SeedOption = 0,
    points: Annotated[int, typer.Option(min=8, help="Points of each fractal.")] = 100_000,
    mode: Annotated[RenderMode, typer.Option(help="exact is the official order of operations.")] = RenderMode.fast,
    shard: Annotated[int, typer.Option(min=1, help="Pictures of a tar shard.")] = 1000,
    force: ForceOption = False,
) -> None:
    """Render a sheet of classes (OUT ends in .png) or a data set (OUT is a folder).

    Data sets: single pictures go to OUT/00042/0000007.png, which every ImageFolder reader takes; pictures of several
    fractals to OUT/images/ beside labels.csv. WebDataset shards hold NAME.png with NAME.cls or NAME.json. The recipes
    of the room train on any of these with --data.root OUT.
    """
    from datamodules.fractals import FractalsDataModule
    from datamodules.fractals.rendering import say_if_compiling

    if size < 1:
        raise ZooError(f"--size is at least 1 pixel, not {size}.")
    sheet = output.suffix.lower() == ".png"
    if output.suffix.lower() in _OTHER_PICTURES:
        raise ZooError(f"Sheets are written as .png, not as {output.suffix}; a folder needs another name.")
    without = _SETS_ONLY if sheet else () if layout is Layout.webdataset else ("shard",)
    for name in without:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            need = "data sets: give a folder as OUT" if sheet else "--layout webdataset"
            raise ZooError(f"--{name.replace('_', '-')} is for {need}.")
    if sheet:
        _refuse_existing(output, force)
        _check_sheet(classes, size)
    elif output.exists() and not output.is_dir():
        raise ZooError(f"{output} is a file: give a folder, or a name that ends in .png.")
    elif output.is_dir() and any(output.iterdir()) and not force:
        raise ZooError(f"{output} is not empty: choose another folder, or write into it with --force.")
    data = FractalsDataModule(
        "multi_instance" if kind is Kind.multi else "multi_class",
        image_size=max(size, 2) if sheet else size, batch_size=1, num_classes=classes,
        per_class=per_class, seed=seed, mode=mode.value, system_seed=seed, points=points, streams=1,
        systems=None if systems is None else str(systems),
        num_workers=0, period=2 if kind is Kind.multi else 1,
    )  # fmt: skip
    say_if_compiling()
    try:
        if sheet:
            _write_sheet(output, data, classes, size)
            print(f"{output}: {classes} classes")
        else:
            _remove_rendered(output)
            count = _write_dataset(output, data, kind, layout, shard)
            print(f"{output}: {count} pictures of {classes} classes, {data.num_redrawn} fractals drawn again")
    except OSError as error:
        raise ZooError(f"Cannot write {output}: {error.strerror or error}.") from error


def _sheet_columns(classes: int) -> int:
    return math.isqrt(classes - 1) + 1  # as wide as high


def _check_sheet(classes: int, size: int) -> None:
    side = _sheet_columns(classes) * (size + max(1, size // 32))
    if side > _WIDEST_SHEET:
        raise ZooError(f"The sheet would be {side} pixels wide, more than {_WIDEST_SHEET}: lower --classes or --size.")


def _remove_rendered(output: Path) -> None:
    """Takes away what an earlier rendering left in `output`, and nothing else: its classes would mix with the new."""
    for pattern in ("images/*.png", "*/*.png", "labels.csv", "fractals-*.tar*"):
        for path in output.glob(pattern):
            if re.fullmatch(r"(images/|\d{5,}/)\d{7,}\.png|labels\.csv|fractals-\d{6,}\.tar(\.partial)?",
                            path.relative_to(output).as_posix()):  # fmt: skip
                path.unlink()
    for folder in [*output.glob("[0-9]*"), output / "images"]:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _write_sheet(output: Path, data: Any, classes: int, size: int) -> None:
    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    columns, gap = _sheet_columns(classes), max(1, size // 32)
    rows = math.ceil(classes / columns)
    canvas = np.full((rows * (size + gap) + gap, columns * (size + gap) + gap, 3), 40, np.uint8)
    with _progress(classes) as advance:
        for label in range(classes):
            row, column = divmod(label, columns)
            top, left = gap + row * (size + gap), gap + column * (size + gap)
            shares = data.class_picture(label, size)
            cell = (colormaps["viridis"](np.sqrt(shares))[..., :3] * 255).astype(np.uint8)
            cell[shares == 0] = 12
            canvas[top : top + size, left : left + size] = cell
            advance()
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas).save(output)


def _write_dataset(output: Path, data: Any, kind: Kind, layout: Layout, shard: int) -> int:
    from PIL import Image

    data.setup()
    output.mkdir(parents=True, exist_ok=True)
    count = len(data.train_data)
    with _progress(count) as advance, _writer(output, kind, layout, shard, data.num_classes) as write:
        for index in range(count):
            picture, label = data.train_data[(0, index)]
            image = Image.fromarray(picture.permute(1, 2, 0).numpy())
            labels = sorted(set(label.tolist())) if kind is Kind.multi else [int(label)]
            encoded = io.BytesIO()
            image.save(encoded, "png")
            write(index, encoded.getvalue(), labels)
            advance()
    return count


@contextmanager
def _writer(output: Path, kind: Kind, layout: Layout, shard: int, classes: int) -> Iterator[Any]:
    """Gives `write(index, png, labels)` for one of the four forms."""
    digits = max(5, len(str(classes - 1)))  # readers number the folders in the order of their names
    if layout is Layout.webdataset:
        with _shards(output, kind, shard) as write:
            yield write
        return
    table: list[str] = ["file,labels"]

    def write(index: int, png: bytes, labels: list[int]) -> None:
        folder = output / ("images" if kind is Kind.multi else f"{labels[0]:0{digits}d}")
        folder.mkdir(exist_ok=True)
        (folder / f"{index:07d}.png").write_bytes(png)
        table.append(f"images/{index:07d}.png,{' '.join(map(str, labels))}")

    yield write
    if kind is Kind.multi:
        (output / "labels.csv").write_text("\n".join(table) + "\n", encoding="utf-8")


@contextmanager
def _shards(output: Path, kind: Kind, size: int) -> Iterator[Any]:
    opened: dict[int, tarfile.TarFile] = {}

    def close(number: int) -> None:
        opened.pop(number).close()
        os.replace(_shard_path(output, number, ".partial"), _shard_path(output, number))

    def write(index: int, png: bytes, labels: list[int]) -> None:
        number = index // size
        if number not in opened:
            for done in list(opened):
                close(done)
            opened[number] = tarfile.open(_shard_path(output, number, ".partial"), "w")  # noqa: SIM115 - closed above
        meta = ("json", json.dumps({"labels": labels})) if kind is Kind.multi else ("cls", str(labels[0]))
        for suffix, content in (("png", png), (meta[0], meta[1].encode())):
            member = tarfile.TarInfo(f"{index:07d}.{suffix}")
            member.size = len(content)
            opened[number].addfile(member, io.BytesIO(content))

    yield write
    for number in list(opened):
        close(number)


def _shard_path(output: Path, number: int, end: str = "") -> Path:
    return output / f"fractals-{number:06d}.tar{end}"


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ZooError(f"{path} exists already: choose another name, or overwrite it with --force.")


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr for people who watch; gives a function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)

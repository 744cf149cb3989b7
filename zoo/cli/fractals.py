"""`zoo fractals`: draw systems, and render them to sheets and data sets."""

from __future__ import annotations

import io
import json
import os
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
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]


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

    Data sets: single pictures go to OUT/00042/000007.png, which every ImageFolder reader takes; pictures of several
    fractals to OUT/images/ beside labels.csv. WebDataset shards hold NAME.png with NAME.cls or NAME.json. The recipes
    of the room train on any of these with --data.root OUT.
    """
    from datamodules.fractals import FractalsDataModule
    from datamodules.fractals.rendering import say_if_compiling

    if size < 1:
        raise ZooError(f"--size is at least 1 pixel, not {size}.")
    sheet = output.suffix.lower() == ".png"
    if sheet:
        _refuse_existing(output, force)
    elif output.exists() and not output.is_dir():
        raise ZooError(f"{output} is a file: give a folder, or a name that ends in .png.")
    elif output.is_dir() and any(output.iterdir()) and not force:
        raise ZooError(f"{output} is not empty: choose another folder, or write into it with --force.")
    data = FractalsDataModule(
        "multi_instance" if kind is Kind.multi else "multi_class",
        image_size=max(size, 2), batch_size=1, num_classes=classes, per_class=per_class, seed=seed, mode=mode.value,
        systems=None if systems is None else str(systems), system_seed=seed, points=points, streams=1,
        num_workers=0, period=2 if kind is Kind.multi else 1,
    )  # fmt: skip
    say_if_compiling()
    try:
        if sheet:
            _write_sheet(output, data, classes, size)
            print(f"{output}: {classes} classes")
        else:
            count = _write_dataset(output, data, kind, layout, shard)
            print(f"{output}: {count} pictures of {classes} classes, {data.num_redrawn} fractals drawn again")
    except OSError as error:
        raise ZooError(f"Cannot write {output}: {error.strerror or error}.") from error


def _write_sheet(output: Path, data: Any, classes: int, size: int) -> None:
    import math

    import numpy as np
    from matplotlib import colormaps
    from PIL import Image

    columns = math.ceil(math.sqrt(classes))
    rows, gap = math.ceil(classes / columns), max(1, size // 32)
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
    with _progress(count) as advance, _writer(output, kind, layout, shard) as write:
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
def _writer(output: Path, kind: Kind, layout: Layout, shard: int) -> Iterator[Any]:
    """Gives `write(index, png, labels)` for one of the four forms."""
    if layout is Layout.webdataset:
        with _shards(output, kind, shard) as write:
            yield write
        return
    table: list[str] = ["file,labels"]

    def write(index: int, png: bytes, labels: list[int]) -> None:
        folder = output / ("images" if kind is Kind.multi else f"{labels[0]:05d}")
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

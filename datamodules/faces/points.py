"""Landmarks of one's own: any number of points a picture, from a table or from `.pts` files."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.faces.layouts import Annotations, _picture_beside, read_pts
from datamodules.faces.normalisation import box_around
from zoo.errors import ZooError

_BOX = ("left", "top", "right", "bottom")


def read_points(root: Path, split: str) -> Annotations:
    """`points.csv`, or pictures with a `.pts` file each; all files have as many points. `split`: train, test or all.

    The table has a row a picture: `file`, then `x0,y0,x1,y1,...` in pixels, the centre of the first at 0, empty where a
    point is not known; maybe `left,top,right,bottom` of the object, else it is where its points are; maybe `split`
    (train or test). Without one, every fifth picture tests.
    """
    table = root / "points.csv"
    if table.is_file():
        images, targets, boxes, sides = _read_table(table)
    else:
        files = sorted(root.rglob("*.pts"))
        if not files:
            raise ZooError(f"{root} has neither points.csv nor .pts files.")
        every = [read_pts(file, count=None) for file in files]
        other = next((n for n, points in enumerate(every) if len(points) != len(every[0])), None)
        if other is not None:
            raise ZooError(f"{files[other]} has {len(every[other])} points, {files[0]} has {len(every[0])}.")
        images, targets = [_picture_beside(file) for file in files], np.stack(every)
        boxes, sides = box_around(targets), None
    test = np.arange(len(images)) % 5 == 4 if sides is None else np.array([side != "train" for side in sides])
    chosen = np.flatnonzero({"train": ~test, "test": test, "all": np.ones(len(test), bool)}[split])
    if not len(chosen):
        raise ZooError(f"{root} has no picture for {split}.")
    return Annotations([images[k] for k in chosen], targets[chosen], boxes[chosen], None)


def _read_table(table: Path) -> tuple[list[Any], np.ndarray, np.ndarray, list[str] | None]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = header
        rows = [(reader.line_num, row) for row in reader]
    count = sum(name[:1] == "x" and name[1:].isdigit() for name in header)
    columns = [f"{axis}{k}" for k in range(count) for axis in "xy"]
    missing = [name for name in ("file", *columns) if name not in header]
    if missing or not count or not rows:
        raise ZooError(
            f"{table} has {len(rows)} rows and lacks {', '.join(missing[:3]) or 'points'}: its columns are file, "
            "x0, y0, x1, y1 and so on."
        )
    targets, boxes = np.empty((len(rows), count, 2)), np.empty((len(rows), 4))
    boxed = set(_BOX) <= set(header)
    for n, (line, row) in enumerate(rows):
        try:
            targets[n] = np.array([float(row[name].strip() or "nan") for name in columns]).reshape(count, 2)
            if boxed:
                boxes[n] = [float(row[name]) for name in _BOX]
        except (AttributeError, TypeError, ValueError) as error:
            raise ZooError(f"{table}, line {line}: {error}.") from error
        if not np.isfinite(targets[n]).all(-1).any():
            raise ZooError(f"{table}, line {line}: {row['file']} has no point.")
    sides = [str(row["split"]).strip().lower() for _, row in rows] if "split" in header else None
    stray = next((n for n, side in enumerate(sides or []) if side not in ("train", "test", "val")), None)
    if sides is not None and stray is not None:
        raise ZooError(f"{table}, line {rows[stray][0]}: split is train or test, not {sides[stray]!r}.")
    below = table.parent / "images"
    names = [str(row["file"]).strip() for _, row in rows]
    beside = table.parent
    images = [below / n if not (beside / n).is_file() and (below / n).is_file() else beside / n for n in names]
    return images, targets, boxes if boxed else box_around(targets), sides

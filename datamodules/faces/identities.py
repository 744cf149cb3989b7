"""Readers for face recognition: identity folders to train on, LFW-style pairs and IJB templates to test with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.faces.layouts import Annotations
from datamodules.images import IMAGE_SUFFIXES
from zoo.errors import ZooError


def read_identities(root: Path) -> Annotations:
    """One folder a person, as VGGFace2 has them: targets and subjects are the folders' numbers in order of names."""
    people = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    images, labels = [], []
    for number, person in enumerate(people):
        found = sorted(path for path in person.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        images += found
        labels += [number] * len(found)
    if len(set(labels)) < 2:
        raise ZooError(f"{root} has pictures in {len(set(labels))} identity folders; recognition needs two or more.")
    return Annotations(list(images), np.array(labels), None, np.array(labels))


@dataclass(frozen=True)
class Pairs:
    """Pictures and which two of them are compared: `pairs` (P, 3) holds two indices and 1 for the same person."""

    images: list[Path]
    pairs: np.ndarray


def read_pairs(root: Path, listing: Path | None = None) -> Pairs:
    """LFW's `pairs.txt`: lines `name i j` (same person) or `name i other j`; pictures `name/name_0001.jpg` in `root`.

    A first line of numbers alone (folds, pairs) is passed over. CFP and AgeDB lists in this form are read alike.
    """
    listing = listing or next(iter(sorted(root.rglob("pairs.txt"))), root / "pairs.txt")
    if not listing.is_file():
        raise ZooError(f"There is no {listing}.")
    at: dict[Path, int] = {}
    pairs = []
    for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or (number == 1 and all(word.isdigit() for word in words)):
            continue
        if len(words) == 3:
            first, second = (words[0], words[1]), (words[0], words[2])
        elif len(words) == 4:
            first, second = (words[0], words[1]), (words[2], words[3])
        else:
            raise ZooError(
                f"{listing}, line {number}: expected 'name i j' or 'name i other j', found {len(words)} words."
            )
        row = []
        for name, index in (first, second):
            if not index.isdigit():
                raise ZooError(f"{listing}, line {number}: {index!r} is no number of a picture.")
            path = _numbered_picture(root, name, int(index), f"{listing}, line {number}")
            row.append(at.setdefault(path, len(at)))
        pairs.append([*row, int(len(words) == 3)])
    if not pairs:
        raise ZooError(f"{listing} lists no pairs.")
    return Pairs(list(at), np.array(pairs))


def _numbered_picture(root: Path, name: str, index: int, where: str) -> Path:
    for suffix in (".jpg", ".png"):
        path = root / name / f"{name}_{index:04d}{suffix}"
        if path.is_file():
            return path
    raise ZooError(f"{where}: there is no picture {name}/{name}_{index:04d}.jpg in {root}.")


@dataclass(frozen=True)
class Templates:
    """IJB-B or IJB-C, 1:1: pictures with template and medium, and pairs (P, 3) of template numbers and 1 for same."""

    images: list[Path]
    templates: np.ndarray
    media: np.ndarray
    pairs: np.ndarray


def read_ijb(root: Path, name: str = "ijbc") -> Templates:
    """`<name>_face_tid_mid.txt` (picture, template, medium) and `<name>_template_pair_label.txt` (two templates, 1 for
    the same person) under `root`, pictures in `loose_crop`."""
    faces = next(iter(sorted(root.rglob(f"{name}_face_tid_mid.txt"))), None)
    labels = next(iter(sorted(root.rglob(f"{name}_template_pair_label.txt"))), None)
    if faces is None or labels is None:
        raise ZooError(f"{root} lacks {name}_face_tid_mid.txt or {name}_template_pair_label.txt.")
    crops = next((path for path in sorted(root.rglob("loose_crop")) if path.is_dir()), root)
    rows = [line.split() for line in faces.read_text().splitlines() if line.strip()]
    bad = next((number for number, row in enumerate(rows, 1) if len(row) != 3), None)
    if bad is not None:
        raise ZooError(f"{faces}, line {bad}: expected picture, template, medium.")
    try:
        numbers = np.array([row[1:] for row in rows], dtype=np.int64)
        pairs = np.loadtxt(labels, dtype=np.int64, ndmin=2)
    except ValueError as error:
        raise ZooError(f"{faces} or {labels}: {error}.") from error
    if pairs.shape[1] != 3:
        raise ZooError(f"{labels}: {pairs.shape[1]} columns, not 3.")
    unknown = np.setdiff1d(pairs[:, :2], numbers[:, 0])
    if len(unknown):
        raise ZooError(f"{labels} compares template {unknown[0]}, which {faces.name} does not have.")
    return Templates([crops / row[0] for row in rows], numbers[:, 0], numbers[:, 1], pairs)

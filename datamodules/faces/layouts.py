"""Readers of the official layouts of landmark, action-unit and affect data sets: what is in a picture, nothing decoded.

None of these data sets is downloaded here: most want a signed licence (see the room's README).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.faces.normalisation import box_around
from zoo.errors import ZooError

AU_SETS = {"bp4d": (6, 10, 12, 14, 17), "disfa": (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26)}
WFLW_SUBSETS = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
_AROUND = (".jpg", ".png", ".jpeg", ".bmp")


@dataclass
class Annotations:
    """Labelled pictures of one split.

    Attributes:
        images: paths, or (H, W, 3) uint8 arrays where the data set keeps its pictures inside a file.
        targets: (n, ...): landmarks (n, K, 2) in pixels of the picture, centre of the first at 0, NaN where unknown;
            intensities (n, A); valence and arousal (n, 2); identities (n,).
        boxes: (n, 4) left, top, right, bottom of the face in pixels, or None for the whole picture.
        subjects: (n,) numbers of people or videos, or None where the data set does not say.
        subsets: name to (n,) booleans.

    Meshes are not kept but computed one by one (`meshes.Meshes` in the place of targets).
    """

    images: list[Any]
    targets: Any
    boxes: np.ndarray | None = None
    subjects: np.ndarray | None = None
    subsets: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, chosen: np.ndarray) -> Annotations:
        """The pictures `chosen` (indices)."""
        return Annotations(
            [self.images[k] for k in chosen],
            self.targets[chosen],
            None if self.boxes is None else self.boxes[chosen],
            None if self.subjects is None else self.subjects[chosen],
            {name: flags[chosen] for name, flags in self.subsets.items()},
        )


# ---------------------------------------------------------------------- landmarks


def read_pts(path: Path, count: int | None = 68) -> np.ndarray:
    """A `.pts` file of 300-W (1-based) as (count, 2), the centre of the first pixel at 0; None takes any count."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ZooError(f"Cannot read {path}: {error.strerror}.") from error
    opening, closing = text.find("{"), text.rfind("}")
    if opening < 0 or closing < opening:
        raise ZooError(f"{path} is no landmark file of 300-W: it has no points between {{ and }}.")
    points: list[list[float]] = []
    for number, line in enumerate(text[opening + 1 : closing].split("\n"), 1 + text[:opening].count("\n")):
        if not line.strip():
            continue
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            values = []
        if len(values) != 2 or not np.isfinite(values).all():
            raise ZooError(f"{path}, line {number}: {line.strip()[:40]!r} is no point 'x y'.")
        points.append(values)
    if not points or (count is not None and len(points) != count):
        raise ZooError(f"{path} has {len(points)} landmarks, not {count or 'one at least'}.")
    return np.array(points) - 1.0


def read_300w(root: Path, split: str) -> Annotations:
    """300-W: `afw`, `helen/trainset`, `lfpw/trainset` to train (3,148), `helen/testset`, `lfpw/testset` (common) and
    `ibug` (challenging) to test (689); a folder without these is one flat set, of which every fifth picture tests."""
    parts = {"train": ("afw", "helen/trainset", "lfpw/trainset"), "test": ("helen/testset", "lfpw/testset", "ibug")}
    files: list[Path] = []
    hard: list[bool] = []
    if any((root / part).is_dir() for both in parts.values() for part in both):
        for part in parts[split]:
            if not (root / part).is_dir():
                raise ZooError(f"300-W in {root} lacks the folder {part}.")
            found = sorted((root / part).rglob("*.pts"))
            files += found
            hard += [part == "ibug"] * len(found)
    else:
        flat = sorted(root.rglob("*.pts"))
        files = [file for index, file in enumerate(flat) if (index % 5 == 4) == (split == "test")]
        hard = [False] * len(files)
    if not files:
        raise ZooError(f"No .pts files for {split} under {root}.")
    images = [_picture_beside(file) for file in files]
    targets = np.stack([read_pts(file) for file in files])
    challenging = np.array(hard)
    subsets = {"challenging": challenging, "common": ~challenging} if challenging.any() else {}
    return Annotations(images, targets, box_around(targets), None, subsets)


def _picture_beside(file: Path) -> Path:
    for suffix in _AROUND:
        for name in (file.with_suffix(suffix), file.with_suffix(suffix.upper())):
            if name.is_file():
                return name
    raise ZooError(f"There is no picture beside {file}.")


def read_wflw(root: Path, split: str) -> Annotations:
    """WFLW: `list_98pt_rect_attr_{train,test}.txt` (196 coordinates, box, 6 attributes, path) and `WFLW_images`."""
    found = sorted(root.rglob(f"list_98pt_rect_attr_{split}.txt"))
    if not found:
        raise ZooError(f"There is no list_98pt_rect_attr_{split}.txt under {root}.")
    images_at = next((path for path in sorted(root.rglob("WFLW_images")) if path.is_dir()), root / "WFLW_images")
    images, points, boxes, attributes = [], [], [], []
    for number, line in enumerate(found[0].read_text().splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 207:
            raise ZooError(
                f"{found[0]}, line {number}: {len(words)} entries, not 207 (98 points, box, 6 attributes, path)."
            )
        try:
            values = np.array(words[:206], dtype=np.float64)
        except ValueError as error:
            raise ZooError(f"{found[0]}, line {number}: {error}.") from error
        points.append(values[:196].reshape(98, 2))
        boxes.append(values[196:200])
        attributes.append(values[200:206] > 0)
        images.append(images_at / words[206])
    flags = np.array(attributes)
    return Annotations(images, np.stack(points), np.stack(boxes), None, dict(zip(WFLW_SUBSETS, flags.T, strict=True)))


def read_cofw(root: Path, split: str) -> Annotations:
    """COFW's colour files `COFW_{train,test}_color.mat` (MATLAB 7.3): 29 points, occlusion, boxes, pictures inside."""
    from zoo.extras import require

    require("h5py", extra="faces", why="reading COFW takes h5py")
    import h5py

    path = _one(root, f"COFW_{split}_color.mat")
    tail = "Tr" if split == "train" else "T"
    with h5py.File(path, "r") as file:
        for key in (f"Is{tail}", f"phis{tail}", f"bboxes{tail}"):
            if key not in file:
                raise ZooError(f"{path} has no {key}.")
        values = np.array(file[f"phis{tail}"]).T
        if values.shape[1] != 87:
            raise ZooError(f"{path}: {values.shape[1]} numbers a face, not 87 (29 x, 29 y, 29 occlusions).")
        box = np.array(file[f"bboxes{tail}"]).T
        references = np.array(file[f"Is{tail}"]).reshape(-1)
        images = []
        for reference in references:
            pixels = np.array(file[reference]).T  # MATLAB stores columns first
            images.append(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))
    points = np.stack([values[:, :29], values[:, 29:58]], axis=-1) - 1.0
    boxes = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], axis=1) - [1, 1, 1, 1]
    return Annotations(images, points, boxes, None, {"occluded": values[:, 58:].any(axis=1)})


def read_aflw(root: Path, split: str) -> Annotations:
    """AFLW-19: `AFLWinfo_release.mat` (24,386 faces, 20,000 of them to train) and the pictures' folder `flickr`."""
    from scipy.io import loadmat

    path = _one(root, "AFLWinfo_release.mat")
    info = loadmat(path)
    for key in ("data", "bbox", "nameList", "mask_new", "ra"):
        if key not in info:
            raise ZooError(f"{path} has no {key}.")
    order = info["ra"].reshape(-1).astype(np.int64) - 1
    train = round(len(order) * 20000 / 24386)
    rows = order[:train] if split == "train" else order[train:]
    points = np.stack([info["data"][:, :19], info["data"][:, 19:38]], axis=-1).astype(np.float64)
    points[~info["mask_new"].astype(bool)] = np.nan
    box = info["bbox"].astype(np.float64)[:, [0, 2, 1, 3]]  # left, right, top, bottom in the file
    names = [str(np.asarray(name).reshape(-1)[0][0] if isinstance(np.asarray(name).reshape(-1)[0], np.ndarray)
                 else np.asarray(name).reshape(-1)[0]) for name in info["nameList"].reshape(-1)]  # fmt: skip
    at = root / "flickr" if (root / "flickr").is_dir() else root
    frontal = info["mask_new"].astype(bool).all(axis=1)
    return Annotations([at / names[row] for row in rows], points[rows], box[rows], None, {"frontal": frontal[rows]})


# ---------------------------------------------------------------------- action units


def read_disfa(root: Path, split: str, fold: int = 0, folds: int = 3) -> Annotations:
    """DISFA: `ActionUnit_Labels/SN001/SN001_au1.txt` with `frame,intensity` lines; frames as pictures under
    `images/SN001/<frame>.jpg` (the data set comes as videos; any zero-padding of the number will do).

    Subjects are dealt to `folds` in their order; fold `fold` tests.
    """
    labels = root / "ActionUnit_Labels"
    people = sorted(path.name for path in labels.glob("SN*") if path.is_dir())
    if len(people) < folds:
        raise ZooError(f"{labels} has {len(people)} subject folders (SN001 ...), fewer than {folds} folds.")
    if not 0 <= fold < folds:
        raise ZooError(f"fold is 0 to {folds - 1}, not {fold}.")
    images: list[Any] = []
    targets, subjects = [], []
    for number, person in enumerate(people):
        if (number % folds == fold) != (split == "test"):
            continue
        table = {au: _frames(labels / person / f"{person}_au{au}.txt") for au in AU_SETS["disfa"]}
        frames = sorted(set.intersection(*(set(column) for column in table.values())))
        pictures = _numbered(root / "images" / person)
        for frame in frames:
            if frame in pictures:
                images.append(pictures[frame])
                targets.append([table[au][frame] for au in AU_SETS["disfa"]])
                subjects.append(number)
    return _units(images, targets, subjects, root, split)


def read_bp4d(root: Path, split: str) -> Annotations:
    """BP4D with intensities: `AUIntensityCodes/AU06/F001_T1_AU06.csv` with `frame,intensity` lines (9: not coded),
    frames under `images/F001/T1/<frame>.jpg`. FERA 2015: subjects with odd numbers train, even ones test."""
    folder = _first_folder(root, ("AUIntensityCodes", "AUIntensityCodes3.0", "AU_INT"))
    names = sorted({"_".join(path.stem.split("_")[:2]) for path in folder.glob("AU06/*.csv")})
    if not names:
        raise ZooError(f"No F001_T1_AU06.csv files in {folder / 'AU06'}.")
    images: list[Any] = []
    targets, subjects = [], []
    people = sorted({name.split("_")[0] for name in names})
    for name in names:
        person, task = name.split("_")
        if (int(person[1:]) % 2 == 0) != (split == "test"):
            continue
        table = {au: _frames(folder / f"AU{au:02d}" / f"{name}_AU{au:02d}.csv") for au in AU_SETS["bp4d"]}
        pictures = _numbered(root / "images" / person / task)
        for frame in sorted(set.intersection(*(set(column) for column in table.values()))):
            intensities = [table[au][frame] for au in AU_SETS["bp4d"]]
            if frame in pictures and max(intensities) <= 5:
                images.append(pictures[frame])
                targets.append(intensities)
                subjects.append(people.index(person))
    return _units(images, targets, subjects, root, split)


def _units(images: list[Any], targets: list[Any], subjects: list[int], root: Path, split: str) -> Annotations:
    if not images:
        raise ZooError(f"No frame under {root / 'images'} has labels for {split}.")
    return Annotations(images, np.array(targets, dtype=np.float64), None, np.array(subjects))


def _frames(path: Path) -> dict[int, float]:
    """`frame,intensity` lines; a header is passed over."""
    if not path.is_file():
        raise ZooError(f"There is no label file {path}.")
    found = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.replace(";", ",").split(",")
        if number == 1 and not words[0].strip().isdigit():
            continue
        if line.strip():
            try:
                frame, intensity = int(words[0]), float(words[1])
            except (ValueError, IndexError) as error:
                raise ZooError(f"{path}, line {number}: expected 'frame,intensity', found {line[:40]!r}.") from error
            if intensity != 9 and not 0 <= intensity <= 5:
                raise ZooError(f"{path}, line {number}: intensity {intensity:g} is not between 0 and 5.")
            found[frame] = intensity
    return found


def _numbered(folder: Path) -> dict[int, Path]:
    """Pictures of a folder by the number in their names."""
    found = {}
    for path in sorted(folder.glob("*")):
        digits = re.search(r"(\d+)$", path.stem)
        if path.suffix.lower() in _AROUND and digits:
            found[int(digits.group(1))] = path
    return found


# ---------------------------------------------------------------------- valence and arousal


def read_affectnet(root: Path, split: str) -> Annotations:
    """AffectNet: `training.csv` or `validation.csv` (subDirectory_filePath, face_x, face_y, face_width, face_height,
    ..., valence, arousal) and the pictures beside them or in `Manually_Annotated_Images`. Rows with -2 are left out."""
    path = _one(root, "training.csv" if split == "train" else "validation.csv")
    at = next(
        folder for folder in (root / "Manually_Annotated_Images", root / "Manually_Annotated", root) if folder.is_dir()
    )
    images: list[Any] = []
    targets, boxes, left_out = [], [], 0
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        needed = {"subDirectory_filePath", "face_x", "face_y", "face_width", "face_height", "valence", "arousal"}
        missing = needed - set(reader.fieldnames or ())
        if missing:
            raise ZooError(f"{path} has no column {', '.join(sorted(missing))}.")
        for number, row in enumerate(reader, 2):
            try:
                affect = [float(row["valence"]), float(row["arousal"])]
                left, top, width, height = (float(row[f"face_{key}"]) for key in ("x", "y", "width", "height"))
            except (TypeError, ValueError) as error:
                raise ZooError(f"{path}, line {number}: {error}.") from error
            if -2 in affect:
                left_out += 1
                continue
            if not all(-1 <= value <= 1 for value in affect):
                raise ZooError(f"{path}, line {number}: valence and arousal lie between -1 and 1, not at {affect}.")
            images.append(at / row["subDirectory_filePath"])
            targets.append(affect)
            boxes.append([left, top, left + width, top + height])
    if not images:
        raise ZooError(f"{path} has no row with valence and arousal ({left_out} rows say -2, not annotated).")
    if left_out:
        rank_zero_info(f"{path.name}: {left_out} rows without valence and arousal (-2) left out, {len(images)} taken.")
    return Annotations(images, np.array(targets), np.array(boxes))


# ---------------------------------------------------------------------- helpers


def _one(root: Path, name: str) -> Path:
    found = sorted(root.rglob(name))
    if not found:
        raise ZooError(f"There is no {name} under {root}.")
    return found[0]


def _first_folder(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ZooError(f"{root} has no folder {' or '.join(names)}.")

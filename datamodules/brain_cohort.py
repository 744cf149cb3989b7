"""A made-up cohort of brain-tumour MRI: real NIfTI files in the layout of BraTS, of heads that never lived.

An ellipsoidal head with folded grey matter around white matter, ventricles, a smooth variation of tissue, and a tumour
of nested parts: oedema around enhancing rim around necrosis. One map of tissues gives all four sequences through a
contrast table (in T1ce the rim is bright, in T2 and FLAIR the oedema, ...), so each says a lot about the others.
"""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import numpy as np
from scipy import ndimage

from zoo.errors import ZooError
from zoo.extras import require
from zoo.nn.subjects import SEQUENCES

TISSUES = ("grey", "white", "fluid", "oedema", "rim", "necrosis")
CONTRAST = {  # relative brightness of the tissues
    "t1": (0.60, 0.85, 0.25, 0.50, 0.55, 0.35),
    "t1ce": (0.60, 0.85, 0.25, 0.50, 1.40, 0.35),
    "t2": (0.70, 0.50, 1.30, 1.05, 0.85, 1.15),
    "flair": (0.70, 0.55, 0.25, 1.25, 0.95, 0.60),
}
TEXTURE = {"t1": 0.12, "t1ce": 0.12, "t2": -0.10, "flair": 0.08}  # share of the common variation, with its sign
GAIN = {"t1": 420.0, "t1ce": 520.0, "t2": 640.0, "flair": 480.0}  # scanner units
NOISE = 0.02
NAMES = {"brats": ("_", "t1", "t1ce", "t2", "flair"), "brats-gli": ("-", "t1n", "t1c", "t2w", "t2f")}
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS voxel order at 1 mm, as BraTS has it


def make_subject(
    seed: int, shape: tuple[int, int, int] = (240, 240, 155), enhancing: bool = True
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """One head: {sequence: (H, W, D) int16, background exactly 0} and labels (H, W, D) uint8 in {0, 1, 2, 4}."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in shape), indexing="ij", sparse=True)

    def smooth(cells: int) -> np.ndarray:
        """A field of unit variance that varies over about 2 / cells of the volume."""
        coarse = generator.standard_normal((cells + 1,) * 3).astype(np.float32)
        factors = [side / (cells + 1) for side in shape]
        field = ndimage.zoom(coarse, factors, order=1, mode="nearest", grid_mode=True)
        return field / max(float(field.std()), 1e-6)

    def radius(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """1 on the surface of an ellipsoid, less inside."""
        terms = (((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))
        return np.sqrt(sum(terms, start=np.float32(0)))

    centre = generator.uniform(-0.04, 0.04, 3)
    head_radii = generator.uniform([0.62, 0.74, 0.70], [0.72, 0.86, 0.82])
    head = radius(centre, head_radii)
    brain = head < 1
    folds = smooth(12)
    tissue = np.where(head + 0.07 * folds > 0.78, 0, 1).astype(np.int8)  # 0 grey, 1 white
    for side in (-1, 1):
        offset = centre + np.array([side * generator.uniform(0.10, 0.16), generator.uniform(-0.05, 0.1), 0.05])
        tissue[radius(offset, generator.uniform([0.06, 0.20, 0.14], [0.10, 0.30, 0.22])) < 1] = 2

    direction = generator.standard_normal(3)
    direction /= np.linalg.norm(direction)
    seat = centre + direction * head_radii * generator.uniform(0.25, 0.5)
    size = generator.uniform(0.24, 0.40)
    lesion = radius(seat, size * generator.uniform(0.8, 1.2, 3)) + 0.12 * smooth(8)
    inner, core = generator.uniform(0.30, 0.45), generator.uniform(0.55, 0.70)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[(lesion < 1) & brain] = 2
    labels[(lesion < core) & brain] = 4 if enhancing else 1
    labels[(lesion < inner) & brain] = 1
    for part, value in (("oedema", 2), ("rim", 4), ("necrosis", 1)):
        tissue[labels == value] = TISSUES.index(part)

    texture = smooth(6)
    sequences = {}
    for name in SEQUENCES:
        signal = np.asarray(CONTRAST[name], dtype=np.float32)[tissue] * (1 + TEXTURE[name] * texture)
        signal = ndimage.uniform_filter(signal, 2)  # partial volume
        signal += NOISE * generator.standard_normal(shape, dtype=np.float32)
        signal *= GAIN[name] * generator.uniform(0.7, 1.3)
        sequences[name] = np.where(brain, np.clip(signal, 1, 32767), 0).astype(np.int16)
    return sequences, labels


def write_cohort(
    folder: str | Path,
    subjects: int = 24,
    shape: tuple[int, int, int] = (240, 240, 155),
    names: str = "brats",
    seed: int = 0,
    enhancing_share: float = 0.8,
    compress: bool = True,
) -> Path:
    """Writes `subjects` heads as NIfTI (int16, segmentation uint8), one folder each, and `subjects.csv` beside them.

    The table has what fine-tuning needs: subtype (GBM where the tumour enhances, else LGG), IDH, and a survival time in
    years that falls with the size of the core, censored in a quarter of the subjects.

    Args:
        names: "brats" (`ID_t1.nii.gz`, enhancing tumour 4) or "brats-gli" (`ID-t1n.nii.gz`, enhancing tumour 3).
        compress: `.nii.gz`, else `.nii`.

    A folder that is there already, from a whole run with the same arguments, is left as it is. Returns the folder.
    """
    require("nibabel", extra="medical", why="NIfTI files are written with nibabel")
    import nibabel as nib

    if names not in NAMES:
        raise ZooError(f"names is {' or '.join(NAMES)}, not {names!r}.")
    target = Path(folder)
    arguments = f"{subjects} {tuple(shape)} {names} {seed} {enhancing_share} {compress}\n"
    stamp = target / ".complete"
    if stamp.is_file() and stamp.read_text() == arguments:
        return target
    if target.exists() and any(target.iterdir()):
        raise ZooError(f"{target} exists and is not this cohort: give another folder or remove it.")
    partial = target.with_name(f".{target.name}.{os.getpid()}.new")
    separator, *spellings = NAMES[names]
    suffix = ".nii.gz" if compress else ".nii"
    rows = []
    generator = np.random.default_rng(seed)
    try:
        for index in range(subjects):
            enhancing = bool(generator.random() < enhancing_share)
            volumes, labels = make_subject(seed * 100_003 + index, tuple(shape), enhancing)
            subject = f"BraTS2021_{index:05d}" if names == "brats" else f"BraTS-GLI-{index:05d}-000"
            core = float(((labels == 1) | (labels == 4)).sum() / np.prod(shape))
            hazard = 0.4 + 25 * core + (0.6 if enhancing else 0.0)
            time = float(np.clip(generator.exponential(1 / hazard), 0.01, 13))
            rows.append((subject, "GBM" if enhancing else "LGG", "WT" if enhancing else "Mutant", f"{time:.4f}",
                         int(generator.random() < 0.75)))  # fmt: skip
            if names == "brats-gli":
                labels = np.where(labels == 4, 3, labels).astype(np.uint8)
            for name, spelling in zip((*SEQUENCES, "seg"), (*spellings, "seg"), strict=True):
                image = nib.Nifti1Image(labels if name == "seg" else volumes[name], AFFINE)
                path = partial / subject / f"{subject}{separator}{spelling}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                nib.save(image, path)
        with (partial / "subjects.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("subject", "project_id", "IDH", "time", "event"), *rows])
        (partial / ".complete").write_text(arguments)
        if target.exists():
            target.rmdir()
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
    except OSError as error:
        if stamp.is_file():  # another process was faster
            return target
        raise ZooError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target

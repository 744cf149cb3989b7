"""Reading, preparing and writing MRI volumes, on nibabel and MONAI (extra `medical`).

A volume is a MONAI MetaTensor (1, H, W, D): voxels in the order of the file, and the affine that places them in
millimetres. Everything that preparation does to it is recorded on it, so a result can be put back where it came from.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import ZooError
from zoo.extras import require
from zoo.nn.subjects import Subject, one_subject

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from monai.transforms import Compose

AFFINE_TOLERANCE = 1e-2  # millimetres (and direction cosines times voxel size)
LABELS = {
    # name: (values allowed, value of enhancing tumour)
    "brats": ((0, 1, 2, 4), 4),
    "brats2023": ((0, 1, 2, 3), 3),
    "brats2024": ((0, 1, 2, 3, 4), 3),  # 4 is the resection cavity, no part of the three regions
}
REGIONS = ("tc", "wt", "et")
"""Channels of a segmentation: tumour core, whole tumour, enhancing tumour."""


def _libraries() -> None:
    require("nibabel", "monai", extra="medical", why="MRI is read with nibabel and MONAI")


# ---------------------------------------------------------------------- reading


def read_header(path: Path, subject: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine (4, 4) of a file without its voxels. Raises `ZooError` with the subject's id."""
    image = _open(path, subject)
    return _shape(image, path, subject), np.asarray(image.affine, dtype=np.float64)


def read_volume(path: Path, subject: str) -> MetaTensor:
    """One 3-D volume (1, H, W, D), float32, header scaling applied.

    Raises `ZooError`, one line with the subject's id, if the file is damaged, not 3-D, not finite or constant.
    """
    from monai.data import MetaTensor

    image = _open(path, subject)
    shape = _shape(image, path, subject)
    voxels = _voxels(image, path, subject).reshape(shape)
    if not np.isfinite(voxels).all():
        raise ZooError(f"{subject}: {path} holds voxels that are not finite (NaN or infinite).")
    if voxels.min() == voxels.max():
        raise ZooError(f"{subject}: {path} is constant, every voxel is {voxels.flat[0]:g}.")
    return MetaTensor(torch.from_numpy(voxels).unsqueeze(0), affine=torch.as_tensor(image.affine, dtype=torch.float64))


def read_labels(path: Path, subject: str, labels: str = "brats") -> MetaTensor:
    """A segmentation (1, H, W, D) as uint8 with enhancing tumour 4, core 1, oedema 2, however `labels` numbers it.

    Raises `ZooError` for values that `labels` (a key of `LABELS`) does not know.
    """
    from monai.data import MetaTensor

    image = _open(path, subject)
    voxels = _voxels(image, path, subject).reshape(_shape(image, path, subject))
    allowed, enhancing = LABELS[labels]
    found = np.unique(voxels)
    strange = [value for value in found.tolist() if value not in allowed]
    if strange:
        advice = ""
        if 3 in strange and labels == "brats":
            advice = " 3 is enhancing tumour since BraTS 2023: set data.labels to brats2023."
        elif 4 in strange and labels == "brats2023":
            advice = (
                " 4 is enhancing tumour before BraTS 2023 (data.labels brats), resection cavity in 2024 (brats2024)."
            )
        values = ", ".join(f"{value:g}" for value in strange[:5])
        raise ZooError(f"{subject}: {path} has labels {values}, not among {', '.join(map(str, allowed))}.{advice}")
    result = np.zeros(voxels.shape, dtype=np.uint8)
    for value in (1, 2):
        result[voxels == value] = value
    result[voxels == enhancing] = 4
    return MetaTensor(torch.from_numpy(result).unsqueeze(0), affine=torch.as_tensor(image.affine, dtype=torch.float64))


def regions(labels: Tensor) -> Tensor:
    """Labels (..., 1, H, W, D) as BraTS 2021 numbers them to channels TC, WT, ET, which overlap: (..., 3, H, W, D)."""
    core, oedema, enhancing = labels == 1, labels == 2, labels == 4
    return torch.cat([core | enhancing, core | oedema | enhancing, enhancing], dim=-4).float()


def _open(path: Path, subject: str) -> Any:
    _libraries()
    import nibabel as nib

    if not Path(path).is_file():
        raise ZooError(f"{subject}: there is no file {path}.")
    try:
        return nib.load(path)
    except Exception as error:  # nibabel raises whatever its readers meet in the bytes
        raise ZooError(f"{subject}: {path} is no NIfTI file that can be read ({_reason(error)}).") from error


def _voxels(image: Any, path: Path, subject: str) -> np.ndarray:
    try:
        return np.asanyarray(image.dataobj).astype(np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ZooError(f"{subject}: {path} is damaged or truncated ({_reason(error)}).") from error


def _shape(image: Any, path: Path, subject: str) -> tuple[int, ...]:
    shape = tuple(int(side) for side in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise ZooError(f"{subject}: {path} has {len(shape)} axes {shape}; a sequence is one 3-D volume.")
    return shape


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


# ---------------------------------------------------------------------- a subject as a whole


def check_geometry(subject: str, headers: Mapping[str, tuple[tuple[int, ...], np.ndarray]]) -> None:
    """Raises `ZooError` unless all files of a subject have one shape and one affine (to a hundredth of a millimetre).

    `headers` is {sequence or "seg": (shape, affine)}.
    """
    (first, (shape, affine)), *others = headers.items()
    for name, (other_shape, other_affine) in others:
        if other_shape != shape:
            raise ZooError(f"{subject}: {name} has shape {other_shape}, {first} has {shape}: register them first.")
        gap = float(np.abs(other_affine - affine).max())
        if gap > AFFINE_TOLERANCE:
            raise ZooError(f"{subject}: the affines of {name} and {first} differ by {gap:.3g}: register them first.")


def spacing_of(affine: np.ndarray | Tensor) -> tuple[float, ...]:
    """Voxel size in millimetres along each axis."""
    matrix = np.asarray(affine, dtype=np.float64)[:3, :3]
    return tuple(float(size) for size in np.sqrt((matrix**2).sum(0)))


def is_isotropic_1mm(affine: np.ndarray | Tensor) -> bool:
    return bool(np.allclose(spacing_of(affine), 1.0, atol=1e-3))


def preparation(size: int | None, affine: Tensor, pad: bool = False, nearest: bool = False) -> Compose:
    """The deterministic part of the pipeline: 1 mm voxels (left out where they are), then the central size^3 if given.

    MONAI's transforms, so `preparation(...).inverse(volume)` goes back to the space of the file. Without `pad` an axis
    shorter than `size` is for the caller to refuse: the crop alone would leave it short.
    """
    from monai.transforms import CenterSpatialCrop, Compose, ResizeWithPadOrCrop, Spacing

    steps: list[Any] = []
    if not is_isotropic_1mm(affine):
        steps.append(Spacing(pixdim=(1.0, 1.0, 1.0), mode="nearest" if nearest else "bilinear"))
    if size is not None:
        steps.append(ResizeWithPadOrCrop(size) if pad else CenterSpatialCrop((size,) * 3))
    return Compose(steps)


def prepare(volume: MetaTensor, size: int | None, subject: str, pad: bool = False, nearest: bool = False) -> MetaTensor:
    """Brings a volume to 1 mm and (1, size, size, size) around its centre; whole with `size` None.

    Raises `ZooError` if an axis has fewer than `size` voxels then, unless `pad` (with zeros).
    """
    result = preparation(size, volume.affine, pad, nearest)(volume)
    if size is not None and tuple(result.shape[1:]) != (size,) * 3:
        short = min(result.shape[1:])
        raise ZooError(
            f"{subject}: an axis has {short} voxels of 1 mm, fewer than the {size} of the crop, and nothing is padded "
            "unless you ask for it (pad: true in data, --pad for zoo reconstruct)."
        )
    return result


def put_back(
    volume: Tensor, original: MetaTensor, size: int | None, pad: bool = False, nearest: bool = False
) -> MetaTensor:
    """A prepared-space volume (1, S, S, S) in the space of `original`, which was prepared with this `size` and `pad`.

    What lay outside the crop is 0.
    """
    from monai.data import MetaTensor

    steps = preparation(size, original.affine, pad, nearest)
    like = steps(original)  # again, as MONAI undoes only what the very same transform objects did
    placed = MetaTensor(volume.to(torch.float32), affine=like.affine, applied_operations=like.applied_operations)
    result = steps.inverse(placed) if like.applied_operations else placed
    if result.shape != original.shape:
        raise RuntimeError(f"a volume came back as {tuple(result.shape)}, not {tuple(original.shape)}")
    return MetaTensor(result.as_tensor(), affine=original.affine)


def zscore(volume: Tensor) -> Tensor:
    """(C, ...): each channel to mean 0 and (population) standard deviation 1 over its non-zero voxels; zeros stay 0.

    The same as MONAI's NormalizeIntensity(nonzero=True, channel_wise=True).
    """
    result = volume.float().clone()
    for channel in result:
        inside = channel != 0
        values = channel[inside]
        if len(values):
            deviation = values.std(correction=0)
            channel[inside] = (values - values.mean()) / (deviation if deviation > 0 else 1.0)
    return result


def load_subject(
    raw: Any, size: int | None, pad: bool = False, modalities: tuple[str, ...] | None = None
) -> tuple[dict[str, MetaTensor], dict[str, MetaTensor]]:
    """Prepared, z-scored volumes {sequence: (1, S, S, S)} of one subject, and the originals they came from.

    Args:
        raw: the subject's folder, one of its files, {sequence: path} or a `Subject`.
        modalities: only these, if the subject has them.
    """
    from monai.data import MetaTensor

    subject = one_subject(raw)
    files = {name: path for name, path in subject.sequences.items() if modalities is None or name in modalities}
    if not files:
        wanted = f" among {', '.join(modalities)}" if modalities else ""
        raise ZooError(f"{subject.id}: there is no usable sequence{wanted}.")
    check_geometry(subject.id, {name: read_header(path, subject.id) for name, path in files.items()})
    originals = {name: read_volume(path, subject.id) for name, path in files.items()}
    volumes = {}
    for name, original in originals.items():
        prepared = prepare(original, size, subject.id, pad)
        volumes[name] = MetaTensor(zscore(prepared.as_tensor()), meta=prepared.meta,
                                   applied_operations=prepared.applied_operations)  # fmt: skip
    return volumes, originals


# ---------------------------------------------------------------------- writing


def write_nifti(path: Path, volume: Tensor, affine: Any, dtype: Any = np.float32, like: Path | None = None) -> None:
    """Writes (1, H, W, D) or (H, W, D), whole or not at all; `like` lends its codes and units to the header."""
    _libraries()
    import nibabel as nib

    array = np.asarray(volume.detach().cpu()).reshape(volume.shape[-3:]).astype(dtype)
    image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
    if like is not None:
        header = nib.load(like).header
        if isinstance(header, nib.Nifti1Header):
            image.header.set_xyzt_units(*header.get_xyzt_units())
            image.set_sform(image.affine, int(header["sform_code"]) or 1)
            image.set_qform(image.affine, int(header["qform_code"]))  # 0 stays 0: a qform cannot hold every affine
    suffix = ".nii.gz" if str(path).endswith(".gz") else ".nii"
    new = path.with_name(f".{path.name.removesuffix(suffix)}.new{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, new)
        os.replace(new, path)
    except OSError as error:
        raise ZooError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        new.unlink(missing_ok=True)


__all__ = [
    "LABELS", "REGIONS", "Subject", "check_geometry", "is_isotropic_1mm", "load_subject", "prepare", "put_back",
    "read_header", "read_labels", "read_volume", "regions", "spacing_of", "write_nifti", "zscore",
]  # fmt: skip

"""A downstream task's data as a DataModule: official layouts or rendered faces, few-shot subsets, disjoint people."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from datamodules.audit import Audit, bytes_key, most_common, read_all
from datamodules.base import ZooDataModule, normalize
from datamodules.faces import identities, layouts, meshes
from datamodules.faces.crops import FaceCrops
from datamodules.faces.layouts import Annotations
from datamodules.faces.normalisation import EYES, error_scale
from datamodules.faces.points import read_points
from datamodules.faces.rendered_tasks import rendered_tasks
from datamodules.faces.shots import check_disjoint, few_shot, read_index_file
from datamodules.folds import check_fold, held_out_by_fold
from zoo.errors import ZooError, did_you_mean

DATASETS = {
    "recognition": ("rendered", "identities"),
    "landmarks": ("rendered", "points", "300w", "wflw", "cofw", "aflw"),
    "action_units": ("rendered", "disfa", "bp4d"),
    "valence_arousal": ("rendered", "affectnet"),
    "reconstruction3d": ("rendered", "3dmm"),
    "attributes": ("rendered", "folders"),
}
NORMALISATION = {"300w": "inter_ocular", "wflw": "inter_ocular", "cofw": "inter_ocular", "aflw": "box_diagonal"}
_READERS = {"300w": layouts.read_300w, "wflw": layouts.read_wflw, "cofw": layouts.read_cofw, "aflw": layouts.read_aflw,
            "bp4d": layouts.read_bp4d, "affectnet": layouts.read_affectnet}  # fmt: skip


class FaceTaskDataModule(ZooDataModule):
    """One of the five downstream tasks.

    Batches are dicts: `image` float (B, 3, S, S), `target`, and `scale` (B,) for landmarks and meshes; `subsets` (B, n)
    where the data set groups its pictures.

    Args:
        task: recognition, landmarks, action_units, valence_arousal, reconstruction3d, or attributes (classes).
        dataset: "rendered", points (of one's own, any number: `datamodules.faces.points`), or an official layout:
            identities (VGGFace2's folders), 300w, wflw, cofw, aflw, disfa,
            bp4d, affectnet, 3dmm (300W-LP to train, AFLW2000-3D to test); folders of classes for attributes.
        root: its folder; identities, folders and 3dmm want `train/` and `test/` below it.
        image_size: side of the square cut-outs in pixels.
        batch_size: samples of one step on one device.
        shot: how many labels to train with: a number of samples above 1, or a share; 1.0 is all.
        shot_file: a few-shot index file (`zoo faces shots`) to take `shot` from instead of drawing it.
        shot_seed: of the draw.
        folds, fold: hold out part `fold` of `folds` of the training pictures instead (`zoo kfold`; points and folders
            of classes). With folds None, `fold` is which third of DISFA's subjects tests.
        basis: for 3dmm, an `.npz` with the face model (`datamodules.faces.meshes.read_basis`).
        normalisation: of landmark errors: inter_ocular, inter_pupil, box_diagonal, box_size, image_diagonal, or
            pair:A-B, the distance of two points; None takes the data set's (of points: between the eyes where the
            number of points is that of a known set, else the box's diagonal).
        margin: see `FaceCrops`.
        std_red: as in pre-training.
        flip: probability of mirroring a training picture (not for landmarks and meshes: points would trade places).
        rendered_train, rendered_test, rendered_identities, rendered_seed: the rendered faces.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        task: Literal[
            "recognition", "landmarks", "action_units", "valence_arousal", "reconstruction3d", "attributes"
        ] = "landmarks",
        dataset: str = "rendered",
        root: str = "rendered",
        image_size: int = 224,
        batch_size: int = 64,
        shot: float = 1.0,
        shot_file: str | None = None,
        shot_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        basis: str | None = None,
        normalisation: str | None = None,
        margin: float = 0.15,
        std_red: float = 0.228,
        flip: float = 0.0,
        rendered_train: int = 1000,
        rendered_test: int = 500,
        rendered_identities: int = 50,
        rendered_seed: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, (0.485, 0.456, 0.406), (std_red, 0.224, 0.225))
        self.save_hyperparameters()
        if dataset not in DATASETS[task]:
            raise ZooError(f"{task} has no data set {dataset!r}.{did_you_mean(dataset, DATASETS[task])} "
                           f"It takes {', '.join(DATASETS[task])}.")  # fmt: skip
        check_fold(folds, fold if folds is not None else 0)
        if folds is not None and dataset not in ("points", "folders"):
            raise ZooError(f"{dataset} has no folds: they are for data.dataset points and folders.")
        if flip and task in ("landmarks", "reconstruction3d"):
            raise ZooError(f"flip would exchange left and right points of {task}: set data.flip to 0.")
        self.data: dict[str, Any] | None = None
        self.class_folders: list[str] = []

    def setup(self, stage: str | None = None) -> None:
        if self.data is None:
            self.data = self._open()
            if self.data["subjects"] is not None and getattr(self.data["test"], "subjects", None) is not None:
                check_disjoint(self.data["subjects"], self.data["test"].subjects)

    def _open(self) -> dict[str, Any]:
        h = self.hparams
        if h.dataset == "rendered":
            every = rendered_tasks(
                h.image_size, h.rendered_train, h.rendered_test, h.rendered_identities, h.rendered_seed
            )
            return every[h.task]
        root = Path(h.root).expanduser()
        if not root.is_dir():
            raise ZooError(f"There is no data folder {str(root)!r}: give one with --data.root.")
        options: dict[str, Any] = {}
        if h.dataset in ("identities", "folders", "3dmm"):
            for name in ("train", "test"):
                if not (root / name).is_dir():
                    raise ZooError(f"{root} needs the folders train and test; there is no {name}.")
        if h.dataset == "identities":
            parts = [identities.read_identities(root / name) for name in ("train", "test")]
            names = [{path.parent.name for path in part.images} for part in parts]
            both = sorted(names[0] & names[1])
            if both:
                raise ZooError(
                    f"{len(both)} of the identity folders are in both {root / 'train'} and {root / 'test'}, which "
                    "flatters results: leave each person on one side."
                )
            parts[1].subjects = parts[1].targets + len(names[0])
            outputs, scales = int(parts[0].targets.max()) + 1, [None, None]
        elif h.dataset == "folders":
            parts = [identities.read_identities(root / name) for name in ("train", "test")]
            names = [sorted({path.parent.name for path in part.images}) for part in parts]
            if names[0] != names[1]:
                raise ZooError(
                    f"{root}: train has the classes {names[0][:5]}, test {names[1][:5]}: they must be the same."
                )
            for part in parts:
                part.subjects = None
            parts = self._folded(parts[0], parts)
            self.class_folders = names[0]
            outputs, scales = len(names[0]), [None, None]
        elif h.dataset == "3dmm":
            if h.basis is None:
                raise ZooError(
                    "3dmm needs a face model: give its .npz with --data.basis (see datamodules.faces.meshes)."
                )
            basis = meshes.read_basis(Path(h.basis))
            parts = [meshes.read_3dmm(root / name, basis) for name in ("train", "test")]
            outer = basis.landmarks[[36, 45]]
            eyes = [part.targets.at(outer) for part in parts]
            scales = [np.linalg.norm(pair[:, 0] - pair[:, 1], axis=1) for pair in eyes]
            outputs = len(basis.mean)
            options = {"triangles": torch.as_tensor(basis.triangles.astype(np.int64))}
        else:
            if h.dataset == "disfa":
                parts = [layouts.read_disfa(root, name, h.fold) for name in ("train", "test")]
            else:
                read = read_points if h.dataset == "points" else _READERS[h.dataset]
                parts = [read(root, name) for name in ("train", "test")]
                if h.dataset == "points" and h.folds is not None:
                    parts = self._folded(read_points(root, "all"), parts)
            outputs, scales = parts[0].targets.shape[1], [None, None]
            if h.task == "landmarks":
                known = "inter_ocular" if outputs in EYES else "box_diagonal"
                how = h.normalisation or NORMALISATION.get(h.dataset, known)
                sizes = [_sizes(part.images) if how == "image_diagonal" else None for part in parts]
                scales = [
                    error_scale(part.targets, how, part.boxes, size) for part, size in zip(parts, sizes, strict=True)
                ]
        train, test = (
            FaceCrops(part, h.task, h.image_size, h.margin, scale) for part, scale in zip(parts, scales, strict=True)
        )
        return {"train": train, "test": test, "outputs": outputs, "options": options, "subjects": train.subjects}

    def _folded(self, every: Annotations, parts: list[Annotations]) -> list[Annotations]:
        """The pictures of `every` shared out by `folds` and `fold`; `parts` where there are no folds."""
        h = self.hparams
        if h.folds is None:
            return parts
        strata = every.targets.tolist() if every.targets.ndim == 1 else [0] * len(every)
        out = held_out_by_fold(strata, h.folds, h.fold)
        return [every.part(np.flatnonzero(side)) for side in (~out, out)]

    def class_counts(self) -> list[int] | None:
        """Training pictures of each class (attributes from folders), the labelled ones; None otherwise."""
        if not self.class_folders or self.data is None:
            return None
        labels = self.data["train"].annotations.targets[self.chosen()]
        return np.bincount(labels, minlength=len(self.class_folders)).tolist()

    def chosen(self) -> np.ndarray:
        """Indices of the training samples that count as labelled."""
        self.setup()
        assert self.data is not None
        h, count = self.hparams, len(self.data["train"])
        shot = int(h.shot) if h.shot > 1 else float(h.shot)
        if h.shot_file is not None:
            subsets = read_index_file(Path(h.shot_file), count)
            if f"{shot:g}" not in subsets:
                raise ZooError(f"{h.shot_file} has no shot {shot:g}; it has {', '.join(subsets)}.")
            return subsets[f"{shot:g}"]
        subjects = self.data["subjects"]
        whole = h.task == "recognition"
        return few_shot(count, [shot], h.shot_seed, subjects, whole_subjects=whole)[f"{shot:g}"]

    @property
    def outputs(self) -> int:
        """Outputs of the head: identities, landmarks, units, 2, or vertices."""
        self.setup()
        assert self.data is not None
        return self.data["outputs"]

    @property
    def subset_names(self) -> list[str]:
        """What the data set's test pictures are grouped by (WFLW: pose, expression, ...), in the order of `subsets`."""
        self.setup()
        assert self.data is not None
        test = self.data["test"]
        return list(test.annotations.subsets) if isinstance(test, FaceCrops) else []

    @property
    def head_options(self) -> dict[str, Any]:
        """What the head must know of the data: a mesh's triangles."""
        self.setup()
        assert self.data is not None
        return {key: value for key, value in self.data["options"].items() if key == "triangles"}

    def mean_target(self) -> Tensor:
        """The mean of the labels that training has; no picture is read for it."""
        chosen = self.chosen()
        assert self.data is not None
        return torch.as_tensor(self.data["train"].mean_target(chosen), dtype=torch.float32)

    def train_dataloader(self) -> DataLoader:
        chosen = self.chosen()
        assert self.data is not None
        few = Subset(self.data["train"], chosen.tolist())
        # Few labels may not fill a batch.
        return self.loader(few, train=True, drop_last=len(few) >= self.batch_size)

    def val_dataloader(self) -> DataLoader:
        self.setup()
        assert self.data is not None
        return self.loader(self.data["test"], train=False)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    @property
    def classes(self) -> list[str]:
        """Names of the classes (attributes from folders); none otherwise."""
        self.setup()
        return self.class_folders

    def audit(self, read: bool = True) -> Audit:
        self.setup()
        assert self.data is not None
        found = Audit()
        data = {"training": self.data["train"], "validation": self.data["test"]}
        counts = {side: len(part) for side, part in data.items()}
        found.sides(counts, "pictures")
        if self.class_folders:
            labels = {side: part.annotations.targets.tolist() for side, part in data.items()}
            found.class_counts(labels, self.class_folders)
        if not read or not all(isinstance(part, FaceCrops) for part in data.values()):
            return found

        def look(side: str, index: int) -> tuple[tuple[int, int], str, bool]:
            picture = data[side].picture(index)
            data[side][index]  # the cut-out: a box without size
            outside = False
            if self.hparams.task == "landmarks":
                points = data[side].annotations.targets[index]
                known = points[np.isfinite(points).all(-1)]
                outside = bool(((known < -1) | (known > np.array(picture.size))).any())
            return picture.size, bytes_key(np.asarray(picture)), outside

        seen = read_all(found, counts, look, "pictures or their boxes")
        found.facts["sizes"] = most_common(
            f"{size[0]} x {size[1]}" for part in seen.values() for size, _, _ in part.values()
        )
        names = {side: part.annotations.images for side, part in data.items()}
        strays = [str(names[side][i]) for side, part in seen.items() for i, row in part.items() if row[2]]
        if strays:
            found.problems.append(f"{len(strays)} pictures have landmarks that lie outside, such as {strays[0]}.")
        keys = {
            side: {str(names[side][i]) if isinstance(names[side][i], Path) else f"{side} {i}": row[1]
                   for i, row in part.items()}
            for side, part in seen.items()
        }  # fmt: skip
        found.leaks(keys, "pictures")
        return found

    def raw_sample(self) -> Image.Image:
        """The first test picture."""
        self.setup()
        assert self.data is not None
        test = self.data["test"]
        return test.picture(0) if isinstance(test, FaceCrops) else Image.fromarray(test.faces[0].image)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) to float."""
        assert self.mean is not None
        assert self.std is not None
        return normalize(images, self.mean, self.std)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images = self.normalize(batch["image"])
        if self.trainer is not None:
            images = self.trainer.precision_plugin.convert_input(images)
            if self.trainer.training and self.hparams.flip:
                turned = (torch.rand(len(images)) < self.hparams.flip).to(images.device)
                images = torch.where(turned[:, None, None, None], images.flip(-1), images)
        return {**batch, "image": images}


def _sizes(images: list[Any]) -> np.ndarray:
    """(n, 2) width and height of pictures, from their headers."""
    found = []
    for image in images:
        if isinstance(image, np.ndarray):
            found.append(image.shape[1::-1])
            continue
        try:
            with Image.open(image) as file:
                found.append(file.size)
        except (OSError, ValueError) as error:
            raise ZooError(f"Cannot read the picture {image} ({str(error).split(':')[0]}).") from error
    return np.array(found)

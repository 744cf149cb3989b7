"""Pairs of a cloud and a picture of the same object from the same view, for pre-training."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.base import ZooDataModule
from datamodules.clip2point.clouds import CloudDataset, FileShapes, Split, find_shapes, item_generator
from datamodules.clip2point.names import CLASS_LISTS, SHAPENET55, SHAPENET55_LEFT_OUT
from datamodules.clip2point.primitives import CLASSES, write_collection
from datamodules.clip2point.shader import shade
from zoo.errors import ZooError
from zoo.nn.cameras import VIEWS
from zoo.nn.points import Shape, to_cloud
from zoo.paths import cache_dir

NUM_VIEWS = 10
Pair = tuple[Tensor, Tensor, Tensor, Tensor, int]


class PairDataset(Dataset):
    """Item i is `(picture, cloud, elev, azim, label)` of one of the 10 views.

    The picture is uint8 (3, S, S), the cloud (num_points, 3) float32 in the unit sphere, both angles (1,) in degrees.
    With `image_features` (items, 10, D) set, the picture's features (D,) come in its place and no file is opened.

    Args:
        shapes, labels, classes: what there is.
        pictures: path of view v of item i is `pictures[i] / f"{v}.png"`.
        image_size: side that the pictures must have; they are never resized.
        num_points: of a cloud.
        seed: draws view and points of item i, the same every time; None draws anew, from torch's generator.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        labels: Sequence[int],
        classes: Sequence[str],
        pictures: Sequence[Path],
        image_size: int = 224,
        num_points: int = 1024,
        seed: int | None = None,
    ) -> None:
        self.shapes, self.labels, self.classes, self.pictures = shapes, list(labels), list(classes), list(pictures)
        self.image_size, self.num_points, self.seed = image_size, num_points, seed
        self.elev, self.azim = VIEWS[NUM_VIEWS].tensors()
        self.image_features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int, view: int) -> Tensor:
        """View `view` of item `index`: uint8 (3, S, S). Raises `ZooError` that names a missing or wrong file."""
        path = self.pictures[index] / f"{view}.png"
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except FileNotFoundError as error:
            raise ZooError(f"There is no picture {path}: each object needs 0.png to {NUM_VIEWS - 1}.png.") from error
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ZooError(f"Cannot read the picture {path}: {str(error)[:100]}.") from error
        if pixels.shape[:2] != (self.image_size, self.image_size):
            size = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise ZooError(
                f"{path} has {size} pixels, not {self.image_size}: set data.image_size (and the model's) to match."
            )
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def __getitem__(self, index: int) -> Pair:
        rng = item_generator(self.seed, index)
        view = int(rng.integers(NUM_VIEWS))
        cloud = torch.from_numpy(to_cloud(self.shapes[index], self.num_points, rng))
        image = self.picture(index, view) if self.image_features is None else self.image_features[index, view]
        return image, cloud, self.elev[view, None], self.azim[view, None], self.labels[index]


class PairDataModule(ZooDataModule):
    """Pre-training pairs as `(pictures, clouds, elev, azim, labels)` batches.

    Args:
        root: one of
            - a folder with `ShapeNet55/ShapeNet-55/{train,test}.txt`, `ShapeNet55/shapenet_pc/*.npy` and
              `rendering/<synset>_<model>/{0..9}.png` (the official layout);
            - class folders of meshes (`datamodules.clip2point.clouds.find_shapes` has the layouts): their pictures are
              made by a small shader when first needed and kept in the cache;
            - the word `primitives`: a generated collection of meshes in a dozen classes.
        image_size: side of the pictures and depth maps in pixels.
        num_points: of a cloud.
        modelnet_root: class folders of ModelNet40: a second validation set for zero-shot accuracy.
        batch_size: objects of one step on one device; contrast gains from many.
        primitives_per_class: size of the generated collection, (train, test).
        val_fraction, seed: the held-out share of folders without a split, and the draws that do not change. Training
            draws new views and points each time.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        num_points: int = 1024,
        modelnet_root: str | None = None,
        batch_size: int = 256,
        primitives_per_class: tuple[int, int] = (40, 16),
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.save_hyperparameters(logger=False)
        self.train_data: PairDataset | None = None
        self.val_data: PairDataset | None = None
        self.modelnet: CloudDataset | None = None

    def prepare_data(self) -> None:
        h = self.hparams
        if self._is_shapenet():
            return
        for split in ("train", "test"):
            shapes, _, _, pictures = self._meshes(split)
            make_pictures(shapes, pictures, h.image_size)

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is not None:
            return
        h = self.hparams
        for split, name, seed in (("train", "train_data", None), ("test", "val_data", h.seed)):
            shapes, labels, classes, pictures = self._shapenet(split) if self._is_shapenet() else self._meshes(split)
            data = PairDataset(shapes, labels, classes, pictures, h.image_size, h.num_points, seed)
            setattr(self, name, data)
        if h.modelnet_root is not None:
            shapes, labels, classes = find_shapes(h.modelnet_root, "test", class_list="modelnet40")
            self.modelnet = CloudDataset(shapes, labels, classes, h.num_points, seed=h.seed)

    # ------------------------------------------------------------------ where things are

    def _is_shapenet(self) -> bool:
        return (Path(self.hparams.root).expanduser() / "ShapeNet55").is_dir()

    def _shapenet(self, split: Split) -> tuple[Sequence[Shape], list[int], list[str], list[Path]]:
        root = Path(self.hparams.root).expanduser()
        listing = root / "ShapeNet55" / "ShapeNet-55" / f"{split}.txt"
        renders = next((root / name for name in ("rendering", "Rendering") if (root / name).is_dir()), None)
        if not listing.is_file() or renders is None:
            missing = listing if not listing.is_file() else root / "rendering"
            raise ZooError(f"There is no {missing}, which the official layout of ShapeNet55 has.")
        synsets = list(SHAPENET55)
        paths, labels, pictures = [], [], []
        for number, line in enumerate(listing.read_text(encoding="utf-8").splitlines(), 1):
            line = line.strip()
            if not line:
                continue
            synset, _, rest = line.partition("-")
            model = rest.split("-")[0].split(".")[0]
            if not rest or synset not in SHAPENET55:
                raise ZooError(f"{listing}, line {number}: expected '<synset>-<model>.npy', found {line[:60]!r}.")
            if f"{synset}-{model}" in SHAPENET55_LEFT_OUT:
                continue
            paths.append(str(root / "ShapeNet55" / "shapenet_pc" / line))
            labels.append(synsets.index(synset))
            pictures.append(renders / f"{synset}_{model}")
        if not paths:
            raise ZooError(f"{listing} is empty.")
        return FileShapes(paths), labels, list(SHAPENET55.values()), pictures

    def _meshes(self, split: Split) -> tuple[Sequence[Shape], list[int], list[str], list[Path]]:
        h = self.hparams
        root = self._primitives() if h.root == "primitives" else Path(h.root).expanduser()
        shapes, labels, classes = find_shapes(root, split, val_fraction=h.val_fraction, seed=h.seed, keep=True)
        assert isinstance(shapes, FileShapes)
        where = cache_dir() / "clip2point" / f"pictures-{h.image_size}"
        return shapes, labels, classes, [where / _picture_folder(path) for path in shapes.paths]

    def _primitives(self) -> Path:
        train, test = self.hparams.primitives_per_class
        folder = cache_dir() / "clip2point" / f"primitives-{train}-{test}-seed{self.hparams.seed}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        return write_collection(folder, {"train": train, "test": test}, self.hparams.seed)

    # ------------------------------------------------------------------ what models and callbacks ask

    def raw_sample(self) -> str:
        """The file of a shape, as a user would give it to a model's `preprocess`."""
        self.prepare_data()
        self.setup()
        assert self.val_data is not None
        assert isinstance(self.val_data.shapes, FileShapes)
        return self.val_data.shapes.paths[0]

    @property
    def classes(self) -> list[str]:
        if self.hparams.root == "primitives":
            return sorted(CLASSES)
        self.setup()
        assert self.train_data is not None
        return self.train_data.classes

    @property
    def prompt_names(self) -> list[str]:
        """Class names as prompts have them."""
        return [name.replace("_", " ") for name in self.classes]

    @property
    def prompt_sets(self) -> list[list[str]]:
        """The prompt names of each validation set."""
        more = [list(CLASS_LISTS["modelnet40"][1])] if self.hparams.modelnet_root is not None else []
        return [self.prompt_names, *more]

    def train_dataloader(self) -> DataLoader:
        return self.loader(self.train_data, train=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        # Retrieval is measured within a batch: all batches are whole, so that chance is the same in each.
        whole = len(self.val_data) >= self.batch_size  # type: ignore[arg-type]
        pairs = self.loader(self.val_data, train=False, drop_last=whole)
        return pairs if self.modelnet is None else [pairs, self.loader(self.modelnet, train=False)]

    def labelled_dataloaders(self) -> tuple[DataLoader, DataLoader]:
        """Training and held-out clouds with their labels, the same points every time: what feature probes need."""
        self.setup()
        sets = []
        for data in (self.train_data, self.val_data):
            assert data is not None
            clouds = CloudDataset(data.shapes, data.labels, data.classes, data.num_points, seed=self.hparams.seed)
            sets.append(self.loader(clouds, train=False))
        return sets[0], sets[1]


def _picture_folder(path: str) -> str:
    """A folder name for the pictures of a mesh file: another one as soon as the file changes."""
    stat = os.stat(path)
    digest = hashlib.sha256(f"{Path(path).resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    return f"{digest[:2]}/{Path(path).stem}-{digest[:12]}"


def make_pictures(shapes: Sequence[Shape], folders: Sequence[Path], image_size: int) -> None:
    """Writes `<folder>/{0..9}.png` of each mesh that has none yet, each folder whole or not at all."""
    todo = [index for index, folder in enumerate(folders) if not folder.is_dir()]
    if not todo:
        return
    from rich.progress import track

    for index in track(todo, description=f"pictures of {len(todo)} meshes"):
        shape = shapes[index]
        if shape.faces is None:
            raise ZooError(f"{shape.name} is a cloud: pictures can only be made of meshes.")
        rng = np.random.default_rng(int(folders[index].name[-12:], 16))
        views = shade(shape, VIEWS[NUM_VIEWS], image_size, rng.uniform(0.35, 0.95, 3), rng)
        partial = folders[index].with_name(folders[index].name + f".{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for view, picture in enumerate(views):
            Image.fromarray(picture).save(partial / f"{view}.png")
        try:
            partial.rename(folders[index])
        except OSError:  # another process was faster
            shutil.rmtree(partial, ignore_errors=True)

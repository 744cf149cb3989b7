"""Fractals as training data: no images needed, as many as one likes (Anderson & Farrell 2022)."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.base import ZooDataModule
from datamodules.fractals.datasets import (
    FractalViews,
    MultiInstanceFractals,
    PictureBatches,
    Plan,
    SingleInstanceFractals,
)
from datamodules.fractals.device_pictures import DevicePictures
from datamodules.fractals.draws import DrawnPictures
from datamodules.fractals.files import read_systems
from datamodules.fractals.pictures import LayoutRule, Material, SingleInstance
from datamodules.fractals.rendered import RenderedFractals, open_rendered
from datamodules.fractals.rendering import Mode, Renderer, say_if_compiling
from datamodules.fractals.systems import SeededSystems, jitter_system
from datamodules.fractals.torch_pictures import LAYERS
from datamodules.images import open_images
from datamodules.transforms import ResizeCenterCrop
from zoo.errors import ZooError

Task = Literal["multi_instance", "multi_class", "views"]
_VIEW_BLUR = (0.5, 2.0)
_HELD_OUT = 0xF2AD
_MULTI_SIZES, _VIEW_SIZES = (0.15, 0.6), (0.25, 1.25)


class FractalsDataModule(ZooDataModule):
    """Fractals, rendered while training. Batches are `(images, labels)`, or `(view, view)` for the task "views".

    Args:
        task: "multi_instance": several fractals on a random background, labels (B, most objects) with repeats;
            "multi_class": one fractal a picture, labels (B,); "views": two views of a fractal, no labels.
        image_size: side of the pictures in pixels.
        batch_size: pictures of one step on one device.
        num_classes: number of systems, a class each.
        root: pictures that `zoo fractals render` wrote (any of its forms), instead of rendering: `val_images` of them,
            drawn by the seed, are held out. What follows on systems and pictures then has no effect, but for
            `class_picture`.
        per_class: pictures of an epoch for each class.
        systems: file of systems (the official `ifs-100k.pkl`, or `.npz`); None draws them from `system_seed`.
        system_seed: of the systems, where no file is given.
        maps: half-open range of the number of maps of a drawn system.
        seed: of the pictures; None takes the run's (`seed_everything`).
        mode: "fast", or "exact" for the official renderer's order of operations in float64.
        renderer: "cpu": loaders render. "device": loaders only draw what is to be shown, and the training device makes
            the pictures of a batch at once; the same ones, up to the points of the chaos game. One or two workers are
            enough then. Not with `mode` "exact", `root`, or multi_instance pictures without `color` or `background`.
        points: points of the chaos game.
        jitter: change systems a little each time ("scale", "svd", "sval", "fractaldb-K", "none"); None is what the
            paper has for the task: scale, none, svd.
        objects: (least, most) fractals in a multi-instance picture.
        size_range: (least, most) side of an object as a share of the picture's; None is the paper's for the task.
        fractal_size: side at which the fractals of multi-instance pictures are rendered before they are resized; None
            takes half the picture's (the paper), which small pictures do better without.
        color, background: False paints grey (objects of multi-instance pictures in shades), or leaves the ground black;
            not for views.
        flips: turn and mirror the fractals; False keeps them as they are, for real things that stand upright.
        reach: multi-instance pictures only: how far an object's centre may lie from the picture's, as a share of its
            side; None (the paper) puts it anywhere.
        blur_p: probability of a slight blur.
        stamps: mark a random part of the 3x3 cells around each point.
        allow_empty_stamp: keep the one stamp in 512 that marks nothing (official).
        allow_expansion: take systems that do not contract.
        window: fractals that pictures are put together from (or finished ones that are shown again).
        period: pictures for each new fractal.
        streams: see `datamodules.fractals.datasets.Plan`; a multiple of devices x num_workers.
        val_images: pictures of the validation epoch, other ones than those of training.
        mean, std: per channel; the paper trains on pixels from 0 to 1 as they are.
        probe_root: real labelled images for probes (as `datamodules.images.open_images` takes them), such as "digits".
        probe_crop_pct, probe_val_fraction: of these.
        num_workers, pin_memory: see `ZooDataModule`.
    """

    def __init__(
        self,
        task: Task = "multi_instance",
        image_size: int = 224,
        batch_size: int = 32,
        num_classes: int = 1000,
        per_class: int = 1000,
        root: str | None = None,
        systems: str | None = None,
        system_seed: int = 0,
        maps: tuple[int, int] = (2, 5),
        seed: int | None = None,
        mode: Mode = "fast",
        renderer: Literal["cpu", "device"] = "cpu",
        points: int = 100_000,
        jitter: str | None = None,
        objects: tuple[int, int] = (1, 5),
        size_range: tuple[float, float] | None = None,
        fractal_size: int | None = None,
        color: bool = True,
        background: bool = True,
        flips: bool = True,
        reach: float | None = None,
        blur_p: float = 0.5,
        stamps: bool = True,
        allow_empty_stamp: bool = False,
        allow_expansion: bool = False,
        window: int = 512,
        period: int = 2,
        streams: int = 8,
        val_images: int = 1000,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
        probe_root: str | None = None,
        probe_crop_pct: float = 1.0,
        probe_val_fraction: float = 0.25,
        num_workers: int = 8,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory, mean, std)
        self.save_hyperparameters(logger=False)
        if task not in ("multi_instance", "multi_class", "views"):
            raise ZooError(f"task is 'multi_instance', 'multi_class' or 'views', not {task!r}.")
        if task == "views" and root is not None:
            raise ZooError("Two views of a fractal are rendered as one goes: data.root has no use for the task views.")
        if task == "views" and not (color and background):
            raise ZooError("color and background cannot be left out of views: without them they differ too little.")
        if task != "multi_instance" and reach is not None:
            raise ZooError(f"reach is for multi_instance pictures, where objects are placed, not for {task}.")
        if renderer not in ("cpu", "device"):
            raise ZooError(f"renderer is 'cpu' or 'device', not {renderer!r}.")
        if renderer == "device" and mode == "exact":
            raise ZooError("The official order of operations is the CPU's: mode exact needs renderer cpu.")
        if renderer == "device" and root is not None:
            raise ZooError("Pictures of data.root are rendered already: renderer device has no use for it.")
        if renderer == "device" and objects[1] > LAYERS:
            raise ZooError(
                f"The device puts up to {LAYERS} objects into a picture, not {objects[1]}: use renderer cpu."
            )
        if renderer == "device" and task == "multi_instance" and not (color and background):
            raise ZooError(
                "renderer device paints multi_instance pictures in colour on backgrounds: grey takes renderer cpu."
            )
        for name, value in (("per_class", per_class), ("val_images", val_images)):
            if value < 1:
                raise ZooError(f"{name} is at least 1, not {value}.")
        if systems is not None:
            self.systems: Any = read_systems(systems, num_classes, allow_expansion)
        else:
            self.systems = SeededSystems(num_classes, system_seed, n=tuple(maps))
        self.jitter = jitter if jitter is not None else {"multi_class": "scale", "views": "svd"}.get(task, "none")
        jitter_system(self.systems(0), self.jitter, np.random.default_rng(0))  # an unknown kind shows now
        self.cpu_renderer = Renderer(points, mode, stamps, allow_empty_stamp)
        self.num_classes = num_classes
        self.train_data: Any = None
        self.val_data: Any = None
        self._device: dict[str, DevicePictures] = {}
        if root is None:
            self._dataset("val", 1, 1)  # what cannot be drawn shows now

    def _dataset(self, split: Literal["train", "val"], images: int, world: int) -> Any:
        h = self.hparams
        plan = Plan(
            h.num_classes,
            images,
            h.batch_size,
            self._seed,
            h.streams if split == "train" else 1,
            h.window,
            h.period,
            split,
        )
        if h.task == "multi_class":
            picture = SingleInstance(
                h.image_size, self.cpu_renderer, self.jitter, flips=h.flips, blur_p=h.blur_p, color=h.color,
                background=h.background,
            )  # fmt: skip
            return SingleInstanceFractals(self.systems, plan, picture, world)
        if h.task == "views":
            sizes = _VIEW_SIZES if h.size_range is None else tuple(h.size_range)
            rule = LayoutRule(h.image_size, (1, 1), sizes, flips=h.flips, blur_p=h.blur_p, blur_sigma=_VIEW_BLUR)
            material = Material(h.image_size, h.image_size, self.cpu_renderer, self.jitter)
            return FractalViews(self.systems, plan, material, rule, world)
        sizes = _MULTI_SIZES if h.size_range is None else tuple(h.size_range)
        rule = LayoutRule(h.image_size, tuple(h.objects), sizes, h.flips, h.reach, h.blur_p)
        side = h.image_size // 2 if h.fractal_size is None else h.fractal_size
        material = Material(h.image_size, side, self.cpu_renderer, self.jitter, h.color, h.background)
        return MultiInstanceFractals(self.systems, plan, material, rule, world)

    def setup(self, stage: str | None = None) -> None:
        if self.train_data is None:
            world = self.trainer.world_size if self.trainer else 1
            if self.hparams.root is not None:
                self.train_data, self.val_data = self._rendered()
                return
            on_device = self.hparams.renderer == "device"
            if on_device and self.trainer is not None and self.trainer.strategy.root_device.type == "mps":
                raise ZooError("Colours take double precision, which Apple's GPUs lack: use data.renderer cpu.")
            if not on_device and (self.trainer is None or self.trainer.is_global_zero):
                say_if_compiling()
            self.train_data = self._dataset("train", self.hparams.num_classes * self.hparams.per_class, world)
            self.val_data = self._dataset("val", self.hparams.val_images, world)
            if on_device:
                for data in (self.train_data, self.val_data):
                    self._device[data.plan.split] = DevicePictures(DrawnPictures(data))

    def _rendered(self) -> tuple[RenderedFractals, RenderedFractals]:
        h = self.hparams
        source = open_rendered(h.root)
        count = len(source[1])
        if count <= h.val_images:
            raise ZooError(
                f"{h.root} has {count} pictures, and {h.val_images} are to be held out: lower data.val_images."
            )
        order = np.random.default_rng([_HELD_OUT, self._seed]).permutation(count)
        train, val = order[h.val_images :], order[: h.val_images]
        return tuple(RenderedFractals(source, part, h.task, h.num_classes, h.image_size) for part in (train, val))  # type: ignore[return-value]

    @property
    def _seed(self) -> int:
        """Of the pictures."""
        given = self.hparams.seed
        return int(os.environ.get("PL_GLOBAL_SEED") or 0) if given is None else given

    def train_dataloader(self) -> DataLoader:
        if self.hparams.root is not None:
            return self.loader(self.train_data, train=True)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        self._check_streams(world)
        order = PictureBatches(len(self.train_data), self.batch_size, rank, world)
        data, collate = self._loaded("train", self.train_data)
        loader = DataLoader(
            data,
            batch_sampler=order,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )
        # Where Lightning looks for set_epoch, and for a DistributedSampler that it need not replace.
        loader.__dict__["sampler"] = order
        return loader

    def val_dataloader(self) -> DataLoader:
        data, collate = self._loaded("val", self.val_data)
        return self.loader(data, train=False, collate_fn=collate)

    def _loaded(self, split: str, data: Any) -> tuple[Any, Callable[[Any], Any] | None]:
        """What a loader serves, and how it makes batches: pictures, or only the draws of them."""
        if split not in self._device:
            return data, None
        drawn = self._device[split].drawn
        return drawn, drawn.collate

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, dict):
            pictures = self._device[batch["host"].split](batch)
            batch = pictures.chunk(2) if self.hparams.task == "views" else (pictures, batch["labels"])
        if self.hparams.task != "views" or batch[1] is None:  # None: real images for probes
            return super().on_after_batch_transfer(batch, dataloader_idx)
        first, second = (super(FractalsDataModule, self).on_after_batch_transfer((view,), 0)[0] for view in batch)
        return first, second

    def _check_streams(self, world: int) -> None:
        workers = 1 if self._device else max(1, self.num_workers)  # who renders
        parts = world * workers
        if self.hparams.streams % parts and self.hparams.streams > 1:
            warnings.warn(
                f"{self.hparams.streams} streams do not divide evenly among {world} x {workers} renderers, so "
                f"fractals are rendered more than once: set data.streams to a multiple of {parts}.",
                stacklevel=2,
            )

    @property
    def num_redrawn(self) -> int:
        """How many fractals came out empty or not finite and were drawn again."""
        on_cpu = sum(data.num_redrawn for data in (self.train_data, self.val_data) if data is not None)
        return on_cpu + sum(pictures.redrawn for pictures in self._device.values())

    def raw_sample(self) -> Image.Image:
        """A validation picture (of the task "views" its first view), as `preprocess` takes images."""
        self.setup()
        return Image.fromarray(self.val_data[0][0].permute(1, 2, 0).numpy())

    def class_picture(self, label: int, size: int = 64) -> np.ndarray:
        """What a class looks like: (size, size) shares of its fractal as it is, always the same."""
        rng = np.random.default_rng([self.hparams.system_seed, label])
        renderer = Renderer(self.hparams.points, self.hparams.mode, stamps=False)
        return renderer.render(renderer.points(self.systems(label), rng), size, rng)[0]

    def labelled_dataloaders(self) -> tuple[DataLoader, DataLoader]:
        """Real images of `probe_root`, for training probes and held out, in the evaluation view."""
        h = self.hparams
        if h.probe_root is None:
            raise ZooError("Probes need real images with labels: set data.probe_root (digits, or a folder).")
        view = ResizeCenterCrop(h.image_size, h.probe_crop_pct)
        source = dict(root=h.probe_root, transform=view, val_fraction=h.probe_val_fraction)
        train, held_out = (open_images(split=split, **source) for split in ("train", "val"))
        return self.loader(train, train=False), self.loader(held_out, train=False)

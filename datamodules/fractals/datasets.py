"""Endless fractal pictures by index: what picture k shows follows from (seed, k) alone.

The official loader composes pictures from a ring of the last 512 fractals that its worker rendered, so a picture
depends on the worker's whole past and no run can be repeated. Here the ring is index arithmetic instead. Batches are
dealt out to `streams`; in each stream fractals are numbered, fractal e of a stream follows from (seed, stream, e), and
picture q of a stream is put together from the `window` fractals up to number q // period. A worker keeps what it has
rendered of a window, which saves time and changes nothing: the same pictures come from any number of workers, in any
order, from any point on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from datamodules.fractals import colour as colours
from datamodules.fractals.pictures import Layout, LayoutRule, Material, SingleInstance, compose
from datamodules.fractals.systems import Systems
from zoo.errors import ZooError

Key = tuple[int, int]  # epoch, index in the epoch
Split = Literal["train", "val"]

_PICTURE, _FRACTAL, _CLASSES = 0xF2B0, 0xF2B1, 0xF2B2
_AHEAD = 1 << 40  # numbers of fractals start below zero, seeds do not


@dataclass(frozen=True)
class Plan:
    """Which picture comes where.

    Attributes:
        num_classes: number of systems, one class each.
        images: pictures of an epoch.
        batch_size: pictures that belong to one stream in a row.
        seed: of all draws.
        streams: how many windows there are. Each worker serves streams / (devices x workers) of them; a number of
            workers that does not divide them costs time.
        window: fractals that a picture is put together from.
        period: pictures for each new fractal.
        split: training and validation pictures have draws of their own.
    """

    num_classes: int
    images: int
    batch_size: int
    seed: int = 0
    streams: int = 8
    window: int = 512
    period: int = 2
    split: Split = "train"

    def __post_init__(self) -> None:
        for name in ("num_classes", "images", "batch_size", "streams", "window", "period"):
            if getattr(self, name) < 1:
                raise ZooError(f"{name} is at least 1, not {getattr(self, name)}.")

    def locate(self, key: Key | int) -> tuple[int, int, int]:
        """Picture number over all epochs, its stream, and its number within the stream."""
        epoch, index = (0, key) if isinstance(key, int | np.integer) else key
        batch, place = divmod(int(index), self.batch_size)
        batch += int(epoch) * -(-self.images // self.batch_size)
        turn, stream = divmod(batch, self.streams)
        return batch * self.batch_size + place, stream, turn * self.batch_size + place

    def picture_rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng([_PICTURE, self.seed, self.split == "val", number])

    def fractal_rng(self, stream: int, fractal: int) -> np.random.Generator:
        return np.random.default_rng([_FRACTAL, self.seed, self.split == "val", stream, fractal + _AHEAD])

    def class_of(self, stream: int, fractal: int) -> int:
        """Class of a fractal: over all streams every class comes once before any comes again."""
        turn, place = divmod(fractal * self.streams + stream, self.num_classes)
        return permute(place, self.num_classes, (self.seed * 2 + (self.split == "val")) * _AHEAD + turn)


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in a random order of `size` things, without ever writing that order down.

    Four Feistel rounds over the next power of four, walked on until the result is below `size`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + key * 0xBF58476D1CE4E5B9 + turn * 0x94D049BB133111EB) % 2**64
            mixed = ((mixed ^ mixed >> 29) * 0xD6E8FEB86659FD93) % 2**64
            left, right = right, left ^ (mixed >> 32 & mask)
        index = left << half | right
        if index < size:
            return index


class _Ring:
    """What has been made of a stream's window; made on demand, forgotten once it has left the window."""

    def __init__(self, make: Callable[[int, int], Any], stream: int, window: int) -> None:
        self.make, self.stream, self.window = make, stream, window
        self.kept: dict[int, Any] = {}

    def __getitem__(self, fractal: int) -> Any:
        if fractal not in self.kept:
            self.kept[fractal] = self.make(self.stream, fractal)
        return self.kept[fractal]

    def forget(self, newest: int) -> None:
        if len(self.kept) >= self.window:
            for fractal in [f for f in self.kept if not newest - self.window < f <= newest]:
                del self.kept[fractal]


class _Fractals(Dataset):
    """What the three kinds of data sets share: systems, the plan, and the rings."""

    def __init__(self, systems: Systems, plan: Plan, world: int = 1) -> None:
        self.systems, self.plan, self.world = systems, plan, world
        self._rings: OrderedDict[int, _Ring] = OrderedDict()
        self._redrawn = torch.zeros((), dtype=torch.long).share_memory_()  # worker processes add to it

    def __len__(self) -> int:
        return self.plan.images

    @property
    def num_redrawn(self) -> int:
        """How many fractals came out empty or not finite and were drawn again, all workers together."""
        return int(self._redrawn)

    def ring(self, stream: int) -> _Ring:
        if stream in self._rings:
            self._rings.move_to_end(stream)
            return self._rings[stream]
        info = get_worker_info()
        # A worker holds its share of the windows, whatever comes: memory does not grow.
        room = -(-self.plan.streams // (self.world * (info.num_workers if info else 1)))
        while len(self._rings) >= max(1, room):
            self._rings.popitem(last=False)
        self._rings[stream] = _Ring(self.make, stream, self.plan.window)
        return self._rings[stream]

    def make(self, stream: int, fractal: int) -> Any:
        raise NotImplementedError

    def _count(self, maker: Material | SingleInstance) -> None:
        if maker.redrawn:
            self._redrawn += maker.redrawn
            maker.redrawn = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rings": OrderedDict()}


class MultiInstanceFractals(_Fractals):
    """Several fractals in a picture: `(uint8 (3, S, S), labels (most objects,))`.

    Labels repeat the last one up to the most objects that a picture can have; -1 stands for no label.
    """

    def __init__(self, systems: Systems, plan: Plan, material: Material, rule: LayoutRule, world: int = 1) -> None:
        super().__init__(systems, plan, world)
        self.material, self.rule = material, rule
        self.exact = material.renderer.mode == "exact"

    def make(self, stream: int, fractal: int) -> tuple[np.ndarray, np.ndarray, int]:
        label = self.plan.class_of(stream, fractal)
        image, background = self.material(self.systems(label), self.plan.fractal_rng(stream, fractal))
        self._count(self.material)
        return image, background, label

    def layouts(self, key: Key | int) -> tuple[int, int, list[Layout]]:
        """Stream, newest fractal of its window, and the layouts of what picture `key` consists of (one)."""
        number, stream, place = self.plan.locate(key)
        return stream, place // self.plan.period, [self.rule.draw(self.plan.picture_rng(number), self.plan.window)]

    def pad(self, labels: list[int]) -> list[int]:
        """As many labels for every picture: the last one again, or -1 throughout."""
        labels = labels or [-1]
        return labels + labels[-1:] * (max(1, self.rule.objects[1]) - len(labels))

    def __getitem__(self, key: Key | int) -> tuple[Tensor, ...]:
        stream, newest, (layout,) = self.layouts(key)
        ring = self.ring(stream)
        picture = compose(
            layout, lambda i: ring[newest - i][0], lambda i: ring[newest - i][1], self.exact, self.material.color
        )
        labels = self.pad([ring[newest - placed.index][2] for placed in layout.objects])
        ring.forget(newest)
        return _to_tensor(picture), torch.tensor(labels)


class SingleInstanceFractals(_Fractals):
    """One fractal in a picture: `(uint8 (3, S, S), label)`.

    With a period of 2 every other picture is one of the last `window` finished ones, moved and mirrored: what the
    official data set does with half of its requests. A period of 1 renders every picture.
    """

    def __init__(self, systems: Systems, plan: Plan, picture: SingleInstance, world: int = 1) -> None:
        super().__init__(systems, plan, world)
        self.picture = picture

    def make(self, stream: int, fractal: int) -> tuple[np.ndarray, int]:
        label = self.plan.class_of(stream, fractal)
        image = self.picture(self.systems(label), self.plan.fractal_rng(stream, fractal))
        self._count(self.picture)
        return image, label

    def shown(self, key: Key | int) -> tuple[int, int, int, colours.Move | None]:
        """Stream, newest fractal of its window, the one that picture `key` shows, and how it is moved (None: new)."""
        number, stream, place = self.plan.locate(key)
        newest, old = divmod(place, self.plan.period)
        if not old:
            return stream, newest, newest, None
        rng = self.plan.picture_rng(number)
        fractal = newest - int(rng.integers(0, self.plan.window))
        return stream, newest, fractal, colours.draw_move(rng, self.picture.size, self.picture.size)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, int]:
        stream, newest, fractal, drawn = self.shown(key)
        if self.plan.period == 1:
            image, label = self.make(stream, newest)
            return _to_tensor(image), label
        ring = self.ring(stream)
        image, label = ring[fractal]
        ring.forget(newest)
        return _to_tensor(image if drawn is None else colours.move(image, drawn)), label


class FractalViews(MultiInstanceFractals):
    """Two views of one fractal on two backgrounds, for self-supervised training: `(uint8 view, uint8 view)`."""

    def layouts(self, key: Key | int) -> tuple[int, int, list[Layout]]:
        number, stream, place = self.plan.locate(key)
        newest, old = divmod(place, self.plan.period)
        rng = self.plan.picture_rng(number)
        pick = int(rng.integers(0, self.plan.window)) if old else 0
        return stream, newest, [self.rule.draw(rng, self.plan.window, pick) for _ in range(2)]

    def __getitem__(self, key: Key | int) -> tuple[Tensor, ...]:
        stream, newest, layouts = self.layouts(key)
        ring = self.ring(stream)
        views = [compose(one, lambda i: ring[newest - i][0], lambda i: ring[newest - i][1], self.exact)
                 for one in layouts]  # fmt: skip
        ring.forget(newest)
        return tuple(_to_tensor(view) for view in views)


class PictureBatches(DistributedSampler):
    """Batches of `(epoch, index)` keys in order: device r of W takes batches r, W + r, 2 W + r and so on.

    There is nothing to shuffle: the plan is random already, and rings work only along it. Lightning leaves samplers of
    its parent class alone and calls `set_epoch`.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=False, drop_last=True)  # type: ignore[arg-type]
        self.count, self.batch_size = count, batch_size
        self._skip = 0
        if len(self) < 1:
            raise ZooError(
                f"An epoch of {count} pictures is less than one batch of {batch_size} on each of {world} devices: "
                "lower data.batch_size or raise data.per_class."
            )

    def go_to(self, epoch: int, batch: int) -> None:
        """The next iteration starts at `batch` of `epoch`."""
        self.epoch, self._skip = epoch, batch % len(self)

    def __len__(self) -> int:
        return self.count // self.batch_size // self.num_replicas

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        skip, self._skip = self._skip, 0
        return self._batches(self.epoch, skip)

    def _batches(self, epoch: int, skip: int) -> Iterator[list[Key]]:
        for batch in range(skip, len(self)):
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            yield [(epoch, index) for index in range(start, start + self.batch_size)]


def _to_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()

"""What pictures show, as small arrays: all draws of the CPU's path without its rendering, for `device_pictures`.

The same generators in the same order, so picture k shows the same systems at the same places in the same colours
whether the CPU or the device renders it; only the points of the chaos game are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.fractals import colour as colours
from datamodules.fractals.datasets import FractalViews, Key, MultiInstanceFractals, SingleInstanceFractals
from datamodules.fractals.pictures import Material, SingleInstance
from datamodules.fractals.rendering import ONE_CELL, draw_stamp
from datamodules.fractals.systems import jitter_system
from datamodules.fractals.torch_pictures import amplitudes_of, blur_weights, inverse_moves, nibbles_of
from datamodules.fractals.torch_renderer import Systems, pack_systems

Source = MultiInstanceFractals | SingleInstanceFractals
Batch = dict[str, Any]
_BLACK = colours.FieldDraws(0.0, 0, colours.FieldColour((0, 0, 0), (0, 0, 0)))


@dataclass(frozen=True)
class Entry:
    """All draws of one fractal, and of the finished picture of it where that is what the ring keeps.

    Attributes:
        system: (n, 2, 3), jittered; seed: of its chaos game.
        stamp: (k, 2) cells; shift, sides: (2,) of the region that is shown.
        field: the background; None leaves black.
        flips, colour, blur: of a finished picture; a colour of None paints grey.
    """

    system: np.ndarray
    seed: int
    stamp: np.ndarray
    shift: np.ndarray
    sides: np.ndarray
    field: colours.FieldDraws | None
    flips: tuple[bool, bool, bool] = (False, False, False)
    colour: colours.ObjectColour | None = None
    blur: float | None = None


def draw_entry(
    maker: Material | SingleInstance, system: np.ndarray, rng: np.random.Generator, failures: Sequence[bool] = ()
) -> Entry:
    """What `maker(system, rng)` draws.

    `failures`: the tries that came to nothing; whether the points of each were finite (its picture was blank) or not.
    """
    for finite in (*failures, None):
        jittered, seed = jitter_system(system, maker.jitter, rng), int(rng.integers(0, 2**63))
        if finite is False:
            continue
        shift, sides = maker.draw_region(rng) if isinstance(maker, SingleInstance) else (np.zeros(2), np.ones(2))
        renderer = maker.renderer
        stamp = draw_stamp(rng, renderer.allow_empty_stamp) if renderer.stamps else ONE_CELL
    if isinstance(maker, Material):
        return Entry(jittered, seed, stamp, shift, sides, colours.draw_field(rng))
    flips = colours.draw_flips(rng) if maker.flips else (False, False, False)
    colour = colours.draw_object_colour(rng) if maker.color else None
    field = colours.draw_field(rng) if maker.background else None
    blur = rng.uniform(*maker.blur_sigma) if rng.random() < maker.blur_p else None
    return Entry(jittered, seed, stamp, shift, sides, field, flips, colour, blur)


def pack_entries(entries: Sequence[Entry], size: int, most: int) -> dict[str, Tensor]:
    """A tensor of each kind of draw, (N, ...); systems are padded to `most` maps."""
    systems = pack_systems([entry.system for entry in entries], [entry.seed for entry in entries], most)
    stamps = np.zeros((len(entries), 3, 3), np.int32)
    for row, entry in enumerate(entries):
        stamps[row, entry.stamp[:, 0], entry.stamp[:, 1]] = 1
    fields = [entry.field or _BLACK for entry in entries]
    tints = [entry.colour or colours.ObjectColour(0.0, 0, 0) for entry in entries]
    arrays: dict[str, Any] = systems._asdict() | {
        "stamps": stamps.reshape(-1, 9),
        "shift": _array([entry.shift for entry in entries], np.float32, 2),
        "sides": _array([entry.sides for entry in entries], np.float32, 2),
        "nibbles": nibbles_of([field.seed for field in fields]),
        "amplitudes": amplitudes_of(colours.num_levels(size), [field.decay for field in fields]),
        "scales": _array([field.colour.scales for field in fields], np.float32, 3),
        "shifts": _array([field.colour.shifts for field in fields], np.float32, 3),
        "flips": _array([entry.flips for entry in entries], bool, 3),
        "hue_shift": _array([tint.hue_shift for tint in tints], np.float64),
        "saturation": _array([tint.saturation for tint in tints], np.int64),
        "value": _array([tint.value for tint in tints], np.int64),
        "blur": blur_weights([entry.blur for entry in entries]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


ENTRY_ARRAYS = (*Systems._fields, "stamps", "shift", "sides", "nibbles", "amplitudes", "scales", "shifts", "flips",
                "hue_shift", "saturation", "value", "blur")  # fmt: skip


class Host(NamedTuple):
    """What stays on the host: which fractals a batch needs, as (n, 2) rows of stream and number."""

    split: str
    fresh: np.ndarray
    """Whose draws come with the batch."""
    shown: np.ndarray
    """Of every object; or what every picture shows."""
    backgrounds: np.ndarray
    moved: np.ndarray
    """Pictures that are moved ones."""


class _Sample(NamedTuple):
    stream: int
    newest: int
    what: Any  # layouts, or (fractal, move)
    fresh: Entry | None
    labels: Any


class DrawnPictures(Dataset):
    """The draws of the pictures of `source`; `collate` makes batches of them.

    With the picture that a new fractal comes with, its draws come along: what else is missing (at the start of a run,
    of other devices' pictures) the main process draws itself.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.maker = source.picture if isinstance(source, SingleInstanceFractals) else source.material
        systems: Any = source.systems
        self.most = systems.n[1] - 1 if hasattr(systems, "n") else max(map(len, map(systems, range(len(systems)))))

    def __len__(self) -> int:
        return len(self.source)

    def entry(self, stream: int, fractal: int, failures: Sequence[bool] = ()) -> Entry:
        plan = self.source.plan
        system = self.source.systems(plan.class_of(stream, fractal))
        return draw_entry(self.maker, system, plan.fractal_rng(stream, fractal), failures)

    def pack(self, entries: Sequence[Entry]) -> dict[str, Tensor]:
        return pack_entries(entries, self.maker.size, self.most)

    def __getitem__(self, key: Key | int) -> _Sample:
        source, period = self.source, self.source.plan.period
        fresh = source.plan.locate(key)[2] % period == 0
        if isinstance(source, SingleInstanceFractals):
            stream, newest, fractal, drawn = source.shown(key)
            what: Any = fractal, drawn
            labels: Any = source.plan.class_of(stream, fractal)
        else:
            stream, newest, what = source.layouts(key)
            labels = None
            if not isinstance(source, FractalViews):
                labels = source.pad([source.plan.class_of(stream, newest - one.index) for one in what[0].objects])
        return _Sample(stream, newest, what, self.entry(stream, newest) if fresh else None, labels)

    def collate(self, samples: Sequence[_Sample]) -> Batch:
        """Tensors for the device, and `Host` under the name "host"."""
        fresh = [sample for sample in samples if sample.fresh is not None]
        batch: Batch = self.pack([sample.fresh for sample in fresh])
        keys = _array([(sample.stream, sample.newest) for sample in fresh], np.int64, 2)
        if isinstance(self.source, SingleInstanceFractals):
            host = self._collate_single(samples, keys, batch)
        else:
            host = self._collate_layouts(samples, keys, batch)
        if samples[0].labels is not None:
            batch["labels"] = torch.tensor([sample.labels for sample in samples])
        return batch | {"host": host}

    def _collate_single(self, samples: Sequence[_Sample], fresh: np.ndarray, batch: Batch) -> Host:
        moved = [(row, sample.what[1]) for row, sample in enumerate(samples) if sample.what[1] is not None]
        batch["inverse"] = torch.from_numpy(inverse_moves([drawn.matrix for _, drawn in moved]))
        batch["mirror"] = torch.from_numpy(_array([drawn.mirror for _, drawn in moved], bool, 2))
        shown = _array([(sample.stream, sample.what[0]) for sample in samples], np.int64, 2)
        none = np.empty((0, 2), np.int64)
        return Host(self.source.plan.split, fresh, shown, none, _array([row for row, _ in moved], np.int64))

    def _collate_layouts(self, samples: Sequence[_Sample], fresh: np.ndarray, batch: Batch) -> Host:
        # Of views all first ones come first.
        pictures = [(sample, layout) for view in zip(*(s.what for s in samples), strict=True)
                    for sample, layout in zip(samples, view, strict=True)]  # fmt: skip
        placed = [(at, layer, thing) for at, (_, layout) in enumerate(pictures)
                  for layer, thing in enumerate(layout.objects)]  # fmt: skip
        objects = [thing for _, _, thing in placed]
        boxes = [(at, layer, thing.side, thing.left, thing.top) for at, layer, thing in placed]
        batch |= {
            "object_place": torch.from_numpy(_array(boxes, np.int64, 5)),
            "object_flips": torch.from_numpy(_array([thing.flips for thing in objects], bool, 3)),
            "object_hue_shift": torch.from_numpy(_array([thing.colour.hue_shift for thing in objects], np.float64)),
            "object_saturation": torch.from_numpy(_array([thing.colour.saturation for thing in objects], np.int64)),
            "object_value": torch.from_numpy(_array([thing.colour.value for thing in objects], np.int64)),
            "picture_blur": torch.from_numpy(blur_weights([layout.blur for _, layout in pictures])),
        }
        shown = [(pictures[at][0].stream, pictures[at][0].newest - thing.index) for at, _, thing in placed]
        behind = [(sample.stream, sample.newest - layout.background) for sample, layout in pictures]
        split, none = self.source.plan.split, np.empty(0, np.int64)
        return Host(split, fresh, _array(shown, np.int64, 2), _array(behind, np.int64, 2), none)


def _array(values: list, dtype: Any, *shape: int) -> np.ndarray:
    return np.array(values, dtype).reshape(len(values), *shape)

"""Fractal pictures made on the training device, a batch at a time, from the draws that loaders send (`draws`).

Floor: half a fractal comes with a picture (period 2), of 100,000 points, each an atomic addition to its cell: 3.2
million for a batch of 64. At 224 pixels a picture has a random field of 66,049 cells, on average three objects of up to
134 pixels a side, and 150,528 bytes in the end; on tensors that makes some 3 GB written for the batch, and twice as
many read. That is 500 kernels for a batch of any size, and the host waits for the device but once, at the end, to hear
whether each new fractal came out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.fractals import torch_pictures as tensors
from datamodules.fractals.colour import num_levels
from datamodules.fractals.datasets import SingleInstanceFractals
from datamodules.fractals.draws import ENTRY_ARRAYS, Batch, DrawnPictures
from datamodules.fractals.pictures import TRIES, SingleInstance, hopeless
from datamodules.fractals.torch_renderer import Systems, TorchRenderer, moved_region

Pair = tuple[int, int]  # stream, number of a fractal in it
CHUNK = 64  # fractals or pictures that are worked on at a time
_PIXELS = 16 << 20  # values of the objects that are resized at a time
_FIELD = ("amplitudes", "nibbles", "scales", "shifts")  # draws of a background
_NOTHING = np.iinfo(np.int64).min


class DevicePictures:
    """Makes the pictures of the batches that `drawn.collate` gives.

    Keeps what it has made of each stream's window on the device: fractals in grey and the draws of their backgrounds,
    or finished single pictures. That saves time and changes nothing.
    """

    def __init__(self, drawn: DrawnPictures) -> None:
        self.drawn, self.plan, self.maker = drawn, drawn.source.plan, drawn.maker
        self.single = isinstance(drawn.source, SingleInstanceFractals)
        self.size, self.levels = self.maker.size, num_levels(self.maker.size)
        self.side = self.size if isinstance(self.maker, SingleInstance) else self.maker.fractal_size
        self.renderer = TorchRenderer(self.maker.renderer.steps)
        self.ring = _Ring(-(-self.plan.streams // drawn.source.world))
        self.redrawn = 0

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """(P, 3, size, size) bytes on the device of the batch; of pairs of views all first ones come first."""
        device = batch["maps"].device
        # Rings outlive the step: they must not be tensors of a validation's inference mode, nor half precision.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            made = self._fill(batch, device)
            pictures = self._show(batch, device)
            while self._mend(made, device):
                pictures = self._show(batch, device)
        return pictures

    # ------------------------------------------------------------------ fractals

    def _fill(self, batch: Batch, device: torch.device) -> list[_Made]:
        """Makes what is missing for a batch; says how each came out."""
        host = batch["host"]
        fresh: dict[Pair, int] = {}
        for row, pair in enumerate(_pairs(host.fresh)):
            fresh.setdefault(pair, row)
        others = dict.fromkeys(_pairs(np.concatenate([host.shown, host.backgrounds])))
        window = 0 if self.single and self.plan.period == 1 else self.plan.window  # 0: nothing is shown again
        self.ring.make_room([*fresh, *others], window + len(fresh), device)
        pairs = [pair for pair in fresh if pair not in self.ring]
        new = {name: batch[name] for name in ENTRY_ARRAYS}
        if len(pairs) < len(host.fresh):
            index = _upload(np.array([fresh[pair] for pair in pairs], np.int64), device)
            new = {name: array[index] for name, array in new.items()}
        missing = [pair for pair in others if pair not in self.ring and pair not in fresh]
        if missing:
            drawn = self.drawn.pack([self.drawn.entry(*pair) for pair in missing])
            new = {name: torch.cat([new[name], _upload(drawn[name], device)]) for name in ENTRY_ARRAYS}
        return self._make([*pairs, *missing], new, {}, device) if pairs or missing else []

    def _make(
        self, pairs: list[Pair], new: dict[str, Tensor], failures: dict[Pair, list[bool]], device: torch.device
    ) -> list[_Made]:
        made = []
        for start in range(0, len(pairs), CHUNK):
            some = pairs[start : start + CHUNK]
            part = {name: array[start : start + CHUNK] for name, array in new.items()}
            values, finite, lit = self._single(part) if self.single else self._grey(part)
            self.ring.put(some, values)
            made.append(_Made(some, [list(failures.get(pair, ())) for pair in some], finite, lit))
        return made

    def _grey(self, new: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        systems = Systems(*(new[name] for name in Systems._fields))
        shares, finite, lit = self.renderer.render(systems, self.side, new["stamps"])
        behind = {name: new[name] for name in _FIELD}  # backgrounds are made anew from these, for a sixth of the memory
        return {"shares": shares} | behind, finite, lit

    def _single(self, new: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        assert isinstance(self.maker, SingleInstance)
        systems = Systems(*(new[name] for name in Systems._fields))
        shares, finite, lit = self.renderer.render(
            systems, self.side, new["stamps"], lambda box: moved_region(box, new["shift"], new["sides"])
        )
        shares = tensors.flip(shares, new["flips"]) if self.maker.flips else shares
        bright = shares[:, None] > 0
        if self.maker.color:
            painted = tensors.object_rgb(shares, new["hue_shift"], new["saturation"], new["value"])
        else:
            painted = (bright * 127).to(torch.uint8).expand(-1, 3, -1, -1)
        behind = self._backgrounds(new) if self.maker.background else torch.zeros_like(painted)
        return {"pictures": tensors.blur(torch.where(bright, painted, behind), new["blur"])}, finite, lit

    def _backgrounds(self, new: dict[str, Tensor]) -> Tensor:
        field = tensors.fast_fields(self.levels, self.size, new["amplitudes"], new["nibbles"])
        return tensors.field_rgb(field, new["scales"], new["shifts"])

    def _mend(self, made: list[_Made], device: torch.device) -> bool:
        """Draws again what came out blank or not finite (`made` then holds these); whether there was any."""
        if not made:
            return False
        finite, lit = (torch.cat(parts) for parts in zip(*((one.finite, one.lit) for one in made), strict=True))
        good = finite if self.maker.renderer.allow_empty_stamp else finite & lit
        if bool(good.all()):  # the one time a step that the host waits for the device
            return False
        pairs, failures = [], {}
        known = [pair_and_failures for one in made for pair_and_failures in zip(one.pairs, one.failures, strict=True)]
        for (pair, before), fine, ended in zip(known, good.tolist(), finite.tolist(), strict=True):
            if not fine:
                failures[pair] = [*before, ended]
                pairs.append(pair)
                self.redrawn += 1
                if len(failures[pair]) == TRIES:
                    raise hopeless()
        drawn = self.drawn.pack([self.drawn.entry(*pair, failures[pair]) for pair in pairs])
        made[:] = self._make(pairs, {name: _upload(part, device) for name, part in drawn.items()}, failures, device)
        return True

    # ------------------------------------------------------------------ pictures

    def _show(self, batch: Batch, device: torch.device) -> Tensor:
        if not self.single:
            return self._compose(batch, device)
        host = batch["host"]
        pictures = self.ring.take(host.shown)("pictures")
        if len(host.moved):
            rows = _upload(host.moved, device)
            pictures[rows] = _chunks(tensors.move, pictures[rows], batch["inverse"], batch["mirror"])
        return pictures

    def _compose(self, batch: Batch, device: torch.device) -> Tensor:
        host = batch["host"]
        behind = self.ring.take(host.backgrounds)
        fields = {name: behind(name) for name in _FIELD}
        parts = [{name: values[start : start + CHUNK] for name, values in fields.items()}
                 for start in range(0, len(host.backgrounds), CHUNK)]  # fmt: skip
        canvas = torch.cat([tensors.pack_rgb(self._backgrounds(part)) for part in parts])
        self._paste(batch, canvas)
        return _chunks(
            lambda some, weights: tensors.blur(tensors.unpack_rgb(some), weights), canvas, batch["picture_blur"]
        )

    def _paste(self, batch: Batch, canvas: Tensor) -> None:
        shown = batch["host"].shown
        most = int(self.drawn.source.rule.size_range[1] * self.size)  # type: ignore[union-attr]
        many = max(1, _PIXELS // (3 * max(most, self.side) ** 2))
        for start in range(0, len(shown), many):
            part = slice(start, start + many)
            shares = tensors.flip(self.ring.take(shown[part])("shares"), batch["object_flips"][part])
            tint = (batch[f"object_{name}"][part] for name in ("hue_shift", "saturation", "value"))
            picture, layer, side, left, top = batch["object_place"][part].unbind(1)
            images = tensors.resize(tensors.object_rgb(shares, *tint), side, most)
            tensors.paste(canvas, images, picture, layer, side, left, top)


class _Made(NamedTuple):
    """How fractals came out.

    Attributes:
        failures: earlier tries of each; see `draw_entry`.
        finite, lit: (n,) bool, on the device.
    """

    pairs: list[Pair]
    failures: list[list[bool]]
    finite: Tensor
    lit: Tensor


class _Ring:
    """What has been made of the windows of `rooms` streams: fractal e of a stream lies at e modulo the length.

    Which fractals are there is known on the host; how long the ring is, the batches decide.
    """

    def __init__(self, rooms: int) -> None:
        self.rooms, self.length = max(1, rooms), 0
        self.device = torch.device("cpu")
        self._clear()

    def _clear(self) -> None:
        self.streams: OrderedDict[int, int] = OrderedDict()
        self.holds = np.full((self.rooms, self.length), _NOTHING)
        self.kept: dict[str, Tensor] = {}

    def make_room(self, pairs: list[Pair], length: int, device: torch.device) -> None:
        """Before the fractals of a batch are looked up: every one gets a place of its own, in `length` or more."""
        numbers: dict[int, list[int]] = {}
        for stream, fractal in pairs:
            numbers.setdefault(stream, []).append(fractal)
        span = max(max(some) - min(some) + 1 for some in numbers.values())
        if span > self.length or len(numbers) > self.rooms or device != self.device:
            self.length, self.rooms = max(span, length, self.length), max(self.rooms, len(numbers))
            self.device = device
            self._clear()
        for stream in numbers:
            if stream in self.streams:
                self.streams.move_to_end(stream)
        for stream in numbers:
            if stream not in self.streams:
                room = len(self.streams) if len(self.streams) < self.rooms else self.streams.popitem(last=False)[1]
                self.streams[stream] = room
                self.holds[room] = _NOTHING

    def __contains__(self, pair: Pair) -> bool:
        return bool(self.holds[self.streams[pair[0]], pair[1] % self.length] == pair[1])

    def put(self, pairs: list[Pair], values: dict[str, Tensor]) -> None:
        places = self._places(pairs)
        self.holds.reshape(-1)[places] = [fractal for _, fractal in pairs]
        index = _upload(places, self.device)
        for name, value in values.items():
            if name not in self.kept:
                shape = (self.rooms * self.length, *value.shape[1:])
                self.kept[name] = torch.zeros(shape, dtype=value.dtype, device=self.device)
            self.kept[name][index] = value

    def take(self, pairs: np.ndarray) -> Callable[[str], Tensor]:
        """Gives what is kept of these fractals, by name."""
        index = _upload(self._places(_pairs(pairs)), self.device)
        return lambda name: self.kept[name][index]

    def _places(self, pairs: list[Pair]) -> np.ndarray:
        return np.array(
            [self.streams[stream] * self.length + fractal % self.length for stream, fractal in pairs], np.int64
        )


def _pairs(rows: np.ndarray) -> list[Pair]:
    return [(stream, fractal) for stream, fractal in rows.tolist()]


def _upload(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for what it has still to do."""
    tensor = torch.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _chunks(function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    return torch.cat([function(*part) for part in zip(*(array.split(CHUNK) for array in arrays), strict=True)])

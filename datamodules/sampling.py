"""Which samples make up which batch, on which device, and what they draw: all from (seed, epoch, position).

No sampler, worker or transform holds a state, so a run can go on from any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data.distributed import DistributedSampler

from zoo.errors import ZooError
from zoo.seeding import derive_seed, keep_draws, seed_draws

Key = tuple[int, int]  # epoch, index

_ORDER, _SAMPLE, _COLLATE, _BUCKETS = 0, 1, 2, 3


class TrainBatches(DistributedSampler):
    """Batches of `(epoch, index)` keys for training.

    An epoch is one permutation, cut into micro-batches of `batch_size`; device r of W takes micro-batches r, W + r,
    2 W + r and so on. So W devices see in one step what one device sees in W steps of accumulation.

    Lightning leaves samplers of its parent class alone and calls `set_epoch`.

    Args:
        count: samples in the dataset.
        batch_size: samples of one device and step.
        seed: of the permutations.
        shuffle: False keeps the order of the dataset.
        drop_last: leave out what does not fill a batch on every device; otherwise the start of the epoch fills it up
            (on one device the last batch is short instead).
        rank, world: this device, and how many there are.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=shuffle, seed=seed, drop_last=drop_last)  # type: ignore[arg-type]
        self.count, self.batch_size = count, batch_size
        self._skip = 0
        if len(self) < 1:
            devices = f" on each of {world} devices" if world > 1 else ""
            raise ZooError(
                f"There are {count} training samples, fewer than one batch of {batch_size}{devices}: "
                "lower data.batch_size."
            )

    def go_to(self, epoch: int, batch: int) -> None:
        """The next iteration starts at `batch` of `epoch`."""
        self.epoch, self._skip = epoch, batch % len(self)

    def __len__(self) -> int:
        if self.drop_last:
            return self.count // self.batch_size // self.num_replicas
        return -(-self.count // (self.batch_size * self.num_replicas))

    def order(self) -> np.ndarray:
        """(count,) the samples in the order of this epoch."""
        if not self.shuffle:
            return np.arange(self.count)
        return np.random.default_rng(derive_seed(self.seed, _ORDER, self.epoch)).permutation(self.count)

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        order = self.order()
        if not self.drop_last and self.num_replicas > 1:
            order = np.resize(order, len(self) * self.num_replicas * self.batch_size)
        skip, self._skip = self._skip, 0
        return self._batches(order, self.epoch, skip)

    def _batches(self, order: np.ndarray, epoch: int, skip: int) -> Iterator[list[Key]]:
        for batch in range(skip, len(self)):
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            yield [(epoch, index) for index in order[start : start + self.batch_size].tolist()]


class LengthBuckets(TrainBatches):
    """`TrainBatches` whose batches hold samples of like length.

    Each pool of 50 batches of the epoch's permutation is sorted by length, then the batches are shuffled again; the W
    batches of one step come from neighbouring lengths, so that no device waits for another.

    Args:
        lengths: (count,) of each sample.
        others: as in `TrainBatches`.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, *, pool: int = 50, **others: Any) -> None:
        super().__init__(len(lengths), batch_size, **others)
        self.lengths, self.pool = np.asarray(lengths), pool

    def order(self) -> np.ndarray:
        order, step = super().order(), self.batch_size * self.num_replicas
        if not self.shuffle:
            return order
        pool = step * self.pool
        parts = [order[at : at + pool] for at in range(0, len(order), pool)]
        order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        full = len(order) // step  # the short rest stays last
        shuffled = np.random.default_rng(derive_seed(self.seed, _BUCKETS, self.epoch)).permutation(full)
        return np.concatenate([order[: full * step].reshape(full, step)[shuffled].ravel(), order[full * step :]])


class EvalBatches(DistributedSampler):
    """Batches for evaluation on several devices: every sample exactly once, as many batches on each device.

    Device r of W takes samples r, W + r, 2 W + r and so on. Where that does not come out even, batches are a sample
    smaller, never fewer, so that no device waits for another in a collective call.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int, world: int) -> None:
        if count < world:
            raise ZooError(f"There are {count} samples to evaluate on {world} devices: use fewer devices.")
        super().__init__(range(count), num_replicas=world, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.count, self.batch_size = count, batch_size

    def __len__(self) -> int:
        most = -(-self.count // self.num_replicas)
        return min(-(-most // self.batch_size), self.count // self.num_replicas)

    def __iter__(self) -> Iterator[list[Key]]:  # type: ignore[override]
        mine = np.arange(self.rank, self.count, self.num_replicas)
        for batch in np.array_split(mine, len(self)):
            yield [(0, index) for index in batch.tolist()]


class SeededDataset(Dataset):
    """A map-style dataset whose every sample draws from generators seeded with (seed, epoch, index).

    Indexed by `(epoch, index)`, or by a plain index, which means epoch 0.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Key | int) -> Any:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[Key | int]) -> Samples:
        pairs = [(0, key) if isinstance(key, int) else key for key in keys]
        seeds = [(self.seed, _SAMPLE, epoch, index) for epoch, index in pairs]
        with _own_draws():
            if hasattr(self.dataset, "__getitems__"):  # fetches a batch at a time: one seed for all of it
                seed_draws(*seeds[0])
                samples = self.dataset.__getitems__([index for _, index in pairs])
            else:
                samples = [self._sample(seed, index) for seed, (_, index) in zip(seeds, pairs, strict=True)]
        return Samples(samples, (self.seed, _COLLATE, *pairs[0]))

    def _sample(self, seed: tuple[int, ...], index: int) -> Any:
        seed_draws(*seed)
        return self.dataset[index]


class Samples(list):
    """The samples of a batch, with the seed that collating them may use."""

    def __init__(self, samples: Any, seed: tuple[int, ...]) -> None:
        super().__init__(samples)
        self.seed = seed


class SeededCollate:
    """A collate function that may draw (masks of tokens, say), seeded by the batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        with _own_draws():
            if isinstance(samples, Samples):
                seed_draws(*samples.seed)
            return self.collate(samples)


def _own_draws() -> Any:
    """In the main process nobody else's draws change; a worker process has only its own."""
    return keep_draws() if get_worker_info() is None else nullcontext()

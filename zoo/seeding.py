"""Where every random draw of a run comes from: the run's seed and the number of the thing that draws.

Nothing depends on what was drawn before, so a resumed run needs no saved generator state, and it does not matter how
many worker processes prepare the data.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

import numpy as np
import torch
from lightning import Trainer


def run_seed() -> int:
    """The seed that `seed_everything` was given; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED") or 0)


def derive_seed(*parts: int) -> int:
    """A seed from 0 to 2^63 - 1 out of integers, well mixed: neighbours have nothing in common."""
    packed = struct.pack(f"<{len(parts)}q", *(part % 2**63 for part in parts))
    return int.from_bytes(blake2b(packed, digest_size=8).digest(), "little") >> 1


def seed_draws(*parts: int) -> None:
    """Sets the global generators of torch (CPU and, where in use, GPU), numpy and Python from integers."""
    seed = derive_seed(*parts)
    # torch.manual_seed would collect a stack trace for a CUDA that may never start: 0.1 ms, for every sample.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from the global generator
    random.seed(seed)


STEP, TRANSFER, EVALUATION, EPOCH = 10, 11, 12, 13


def seed_batch(trainer: Trainer, what: int, batch: int) -> None:
    """Seeds the draws of one batch on this device; `what` keeps the purposes apart.

    The batches of an epoch are numbered over all devices: batch t of device r among W is number t W + r. So W devices
    draw in one step what one device draws in W steps of accumulation. Evaluation draws alike in every epoch.
    """
    epoch = 0 if what == EVALUATION else trainer.current_epoch
    seed_draws(run_seed(), what, epoch, batch * trainer.world_size + trainer.global_rank)


@contextmanager
def keep_draws() -> Iterator[None]:
    """Restores the global CPU generators of torch, numpy and Python afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])

"""Cross-validation: which samples of the training side a fold holds out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from zoo.errors import ZooError


def check_fold(folds: int | None, fold: int) -> None:
    """Raises `ZooError` for a number of folds below two, or a fold that is not one of them."""
    if folds is not None and (folds < 2 or not 0 <= fold < folds):
        raise ZooError(f"data.fold is one of 0 to {folds - 1} with {folds} folds (two or more), not {fold}.")


def held_out_by_fold(
    strata: Sequence[Hashable], folds: int, fold: int, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> np.ndarray:
    """(n,) bool, True for the samples that fold `fold` of `folds` holds out; the folds share them out without rest.

    Args:
        strata: the class of each sample: each fold holds out its share of each.
        seed: of the order in which samples are dealt out.
        groups: samples of a group (a patient, a drive) go together; the first one's stratum counts.

    Raises `ZooError` if there are fewer samples (or groups) than folds.
    """
    check_fold(folds, fold)
    keys = list(range(len(strata))) if groups is None else list(groups)
    first: dict[Hashable, Hashable] = {}
    for key, stratum in zip(keys, strata, strict=True):
        first.setdefault(key, stratum)
    if len(first) < folds:
        raise ZooError(f"{len(first)} samples or groups are too few for {folds} folds: lower data.folds.")
    members: dict[Hashable, list[Hashable]] = {}
    for key, stratum in first.items():
        members.setdefault(stratum, []).append(key)
    generator, dealt = np.random.default_rng(seed), 0
    held_out = set()
    for stratum in sorted(members, key=str):
        for place in generator.permutation(len(members[stratum])):
            # Dealt on from class to class, so that small ones do not all end in the first folds.
            if dealt % folds == fold:
                held_out.add(members[stratum][place])
            dealt += 1
    return np.array([key in held_out for key in keys])

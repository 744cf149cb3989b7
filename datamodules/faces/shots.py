"""Few-shot index files: which training samples count as labelled. Ours, since the paper's were never released.

Nested (what 1 % holds, 10 % holds too), drawn from a seed, and held-out subjects never appear in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.errors import ZooError


def order_samples(subjects: Sequence[int] | None, count: int, seed: int) -> np.ndarray:
    """A random order of samples such that every beginning of it has as many subjects as it can: (count,) indices."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    if subjects is None:
        return order
    labels = np.asarray(subjects)[order]
    if len(labels) != count:
        raise ZooError(f"There are {count} samples but {len(labels)} subjects.")
    # The first picture of everybody, then the second, and so on.
    turn = np.zeros(count, dtype=np.int64)
    seen: dict[int, int] = {}
    for place, label in enumerate(labels.tolist()):
        turn[place] = seen.get(label, 0)
        seen[label] = turn[place] + 1
    return order[np.argsort(turn, kind="stable")]


def few_shot(
    count: int,
    shots: Sequence[float | int],
    seed: int = 0,
    subjects: Sequence[int] | None = None,
    whole_subjects: bool = False,
) -> dict[str, np.ndarray]:
    """Nested subsets of `count` samples.

    Args:
        shots: numbers of samples (integers above 1) or shares (0 to 1; 1 is everything).
        subjects: (count,) who is in each sample; None if unknown.
        whole_subjects: take all samples of few subjects (recognition: few identities) instead of few samples of all.

    Returns sorted indices by the shot as written ("0.01", "50"). Every smaller subset is inside every larger one.
    """
    if count < 1:
        raise ZooError("There are no samples to choose from.")
    sizes = {}
    for shot in shots:
        if isinstance(shot, bool) or shot <= 0 or (isinstance(shot, float) and shot > 1 and shot != int(shot)):
            raise ZooError(f"A shot is a share above 0 up to 1, or a whole number of samples, not {shot!r}.")
        sizes[f"{shot:g}"] = max(1, round(count * shot)) if isinstance(shot, float) and shot <= 1 else int(shot)
        if sizes[f"{shot:g}"] > count:
            raise ZooError(f"Shot {shot:g} asks for more than the {count} samples there are.")
    if not whole_subjects:
        order = order_samples(subjects, count, seed)
        return {name: np.sort(order[:size]) for name, size in sizes.items()}
    if subjects is None:
        raise ZooError("whole_subjects needs to know the subjects.")
    people = np.random.default_rng(seed).permutation(np.unique(subjects))
    place = {int(person): number for number, person in enumerate(people)}
    rank = np.array([place[int(subject)] for subject in subjects])
    order = np.argsort(rank, kind="stable")
    return {name: np.sort(order[: _whole(rank[order], size)]) for name, size in sizes.items()}


def _whole(ranks: np.ndarray, size: int) -> int:
    """The fewest first entries that are at least `size` and break no subject apart."""
    return int(np.searchsorted(ranks, ranks[size - 1], side="right"))


def check_disjoint(train: Sequence[int], test: Sequence[int], what: str = "subject") -> None:
    """Raises `ZooError` that says how many subjects are on both sides of a split."""
    both = np.intersect1d(np.asarray(train), np.asarray(test))
    if len(both):
        raise ZooError(
            f"{len(both)} {what}{'s are' if len(both) > 1 else ' is'} in both the training and the test part "
            f"(the first: number {both[0]}): results would be too good. Split by {what}."
        )


def write_index_file(path: Path, subsets: Mapping[str, np.ndarray], *, dataset: str, seed: int, count: int) -> None:
    """Writes subsets as JSON with what they belong to."""
    content = {"dataset": dataset, "seed": seed, "samples": count, "origin": "this package's own, not the paper's",
               "shots": {name: indices.tolist() for name, indices in subsets.items()}}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_index_file(path: Path, count: int) -> dict[str, np.ndarray]:
    """The subsets of a file of `write_index_file`; `count` must be the number of samples that it was made for."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        subsets = {name: np.asarray(indices, dtype=np.int64) for name, indices in content["shots"].items()}
        made_for = int(content["samples"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZooError(f"{path} is no few-shot index file ({error}).") from error
    if made_for != count:
        raise ZooError(f"{path} was made for {made_for} samples, the data has {count}: make it anew.")
    for name, indices in subsets.items():
        if len(indices) and (indices.min() < 0 or indices.max() >= count):
            raise ZooError(f"{path}: shot {name} points outside the {count} samples.")
    return subsets

"""The numbers of the five tasks, numpy in float64: (n, ...) predictions and labels in, plain floats out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zoo.errors import ZooError

# ---------------------------------------------------------------------- regression


def icc(prediction: np.ndarray, label: np.ndarray) -> float:
    """ICC(3,1) of (n,) predictions and labels: two-way mixed, single rater, consistency (Shrout & Fleiss 1979).

    (MS_rows - MS_error) / (MS_rows + MS_error) for two raters; a constant offset between them does not count. 0 where
    nothing varies.
    """
    both = np.stack([_flat(prediction), _flat(label)], axis=1)
    n, k = both.shape
    if n < 2:
        raise ZooError("ICC needs two samples or more.")
    rows, columns, mean = both.mean(axis=1), both.mean(axis=0), both.mean()
    between = k * ((rows - mean) ** 2).sum()
    error = ((both - mean) ** 2).sum() - between - n * ((columns - mean) ** 2).sum()
    ms_rows, ms_error = between / (n - 1), max(error, 0.0) / ((n - 1) * (k - 1))
    total = ms_rows + (k - 1) * ms_error
    return float((ms_rows - ms_error) / total) if total > 0 else 0.0


def ccc(prediction: np.ndarray, label: np.ndarray) -> float:
    """Concordance correlation of (n,) values with population moments; 0 where both are the same constant."""
    x, y = _flat(prediction), _flat(label)
    spread = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    return float(2 * ((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 0.0


def pcc(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's correlation of (n,) values; 0 where one of them does not vary."""
    x, y = _flat(prediction), _flat(label)
    spread = x.std() * y.std()
    return float(((x - x.mean()) * (y - y.mean())).mean() / spread) if spread > 0 else 0.0


def sagr(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of samples whose prediction has the sign of the label; zero is a sign of its own."""
    return float((np.sign(_flat(prediction)) == np.sign(_flat(label))).mean())


def rmse(prediction: np.ndarray, label: np.ndarray) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt(((_flat(prediction) - _flat(label)) ** 2).mean()))


def _flat(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64).reshape(-1)


# ---------------------------------------------------------------------- landmarks and meshes


def nme(prediction: np.ndarray, label: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(n,) mean distance of (n, K, 2 or 3) points to the true ones over (n,) `scale`: the share, not per cent.

    Points whose label is not finite (invisible ones) do not count.
    """
    distance = np.linalg.norm(np.asarray(prediction, np.float64) - np.asarray(label, np.float64), axis=-1)
    return np.nanmean(np.where(np.isfinite(distance), distance, np.nan), axis=1) / np.asarray(scale, np.float64)


def failure_rate(errors: np.ndarray, threshold: float = 0.1) -> float:
    """Share of (n,) errors above the threshold."""
    return float((np.asarray(errors) > threshold).mean())


def auc(errors: np.ndarray, threshold: float = 0.1) -> float:
    """Area under the cumulative error curve up to the threshold, 0 to 1, exactly: the mean of 1 - error / threshold."""
    return float(np.clip(1 - np.asarray(errors, np.float64) / threshold, 0, None).mean())


# ---------------------------------------------------------------------- recognition


def tar_at_far(scores: np.ndarray, same: np.ndarray, rates: Sequence[float] = (1e-4,)) -> dict[float, float]:
    """Share of genuine pairs above the lowest threshold that lets at most that share of impostors pass.

    Args:
        scores: (n,) similarities. same: (n,) True for pairs of one person.

    Where there are fewer impostors than 1 / rate none may pass.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    impostors, genuine = np.sort(scores[~same])[::-1], scores[same]
    if not len(impostors) or not len(genuine):
        raise ZooError("TAR at FAR needs pairs of the same and of different people.")
    found = {}
    for rate in rates:
        allowed = int(np.floor(rate * len(impostors) + 1e-9))
        threshold = impostors[min(allowed, len(impostors) - 1)]  # the best impostor that may not pass
        found[rate] = float((genuine > threshold).mean()) if allowed < len(impostors) else 1.0
    return found


def choose_pairs(identities: np.ndarray, most: int = 2_000_000, seed: int = 0) -> np.ndarray:
    """Pairs of a labelled test set, (P, 3): first image, second image, 1 for the same person.

    All of them where they are no more than `most`; else half as many of the same person, or all of these if they are
    fewer, and half as many of different people, drawn with the seed.
    """
    identities = np.asarray(identities)
    count = len(identities)
    if count * (count - 1) // 2 <= most:
        first, second = np.triu_indices(count, k=1)
        return np.stack([first, second, identities[first] == identities[second]], axis=1)
    rng = np.random.default_rng(seed)
    order = np.argsort(identities, kind="stable")
    starts, sizes = np.unique(identities[order], return_index=True, return_counts=True)[1:]
    possible = sizes * (sizes - 1) // 2
    if possible.sum() <= most // 2:
        inside = [np.stack(np.triu_indices(size, k=1)) + start for start, size in zip(starts, sizes, strict=True)]
        same = np.concatenate(inside, axis=1)
    else:
        person = rng.choice(len(sizes), most // 2, p=possible / possible.sum())
        one = rng.integers(0, sizes[person])
        other = (one + rng.integers(1, sizes[person])) % sizes[person]
        same = np.unique(np.sort(starts[person] + np.stack([one, other]), axis=0), axis=1)
    different = rng.integers(0, count, (2, most // 2))
    different = np.unique(np.sort(different, axis=0), axis=1)
    apart = identities[order[different[0]]] != identities[order[different[1]]]
    both = order[np.concatenate([same, different[:, apart]], axis=1)]
    return np.concatenate([both.T, (np.arange(both.shape[1]) < same.shape[1])[:, None]], axis=1)


def pair_similarity(features: np.ndarray, pairs: np.ndarray, chunk: int = 100_000) -> np.ndarray:
    """(P,) products of the features (n, D) of each pair."""
    parts = [pairs[start : start + chunk] for start in range(0, len(pairs), chunk)]
    return np.concatenate([np.einsum("pd,pd->p", features[part[:, 0]], features[part[:, 1]]) for part in parts])


def pair_accuracy(scores: np.ndarray, same: np.ndarray, folds: int = 10) -> tuple[float, float]:
    """LFW's protocol: each fold is judged by the threshold that is best on the others. Mean and spread of accuracies.

    Folds are consecutive, as the official lists have them; fewer where there are not enough pairs.
    """
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    folds = max(2, min(folds, len(scores)))
    accuracies = []
    for held_out in np.array_split(np.arange(len(scores)), folds):
        rest = np.setdiff1d(np.arange(len(scores)), held_out)
        accuracies.append(
            float(((scores[held_out] >= _best_threshold(scores[rest], same[rest])) == same[held_out]).mean())
        )
    return float(np.mean(accuracies)), float(np.std(accuracies))


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    order = np.argsort(scores)
    ordered, labels = scores[order], same[order]
    # Everything from place i on counts as the same person.
    right = np.concatenate([[0], np.cumsum(~labels)]) + labels.sum() - np.concatenate([[0], np.cumsum(labels)])
    place = int(right.argmax())
    if place == 0:
        return float(ordered[0]) - 1e-12
    if place == len(ordered):
        return float(ordered[-1]) + 1e-12
    return float((ordered[place - 1] + ordered[place]) / 2)


def pool_templates(
    features: np.ndarray, templates: np.ndarray, media: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of images to unit-length features of templates (IJB): mean over a medium's frames, then over media.

    Args:
        features: (n, D). templates: (n,) numbers. media: (n,) numbers of photo or video, None for each its own.

    Returns:
        the templates' numbers, sorted, (T,) and their features (T, D).
    """
    media = np.arange(len(templates)) if media is None else np.asarray(media)
    pairs, inverse = np.unique(np.stack([templates, media], axis=1), axis=0, return_inverse=True)
    per_medium = _group_mean(features, inverse.reshape(-1), len(pairs))
    numbers, inverse = np.unique(pairs[:, 0], return_inverse=True)
    pooled = _group_mean(per_medium, inverse.reshape(-1), len(numbers))
    return numbers, pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def _group_mean(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    total = np.zeros((count, values.shape[1]))
    np.add.at(total, group, values)
    return total / np.bincount(group, minlength=count)[:, None]

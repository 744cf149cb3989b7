"""Pictures of maps and scenes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.driving.features import LocalScene
from zoo.driving.maps import VectorMap
from zoo.driving.scenes import HISTORY, Scene

LANE, PAST, TRUTH, BOX = "0.72", "tab:blue", "tab:green", 52.0


def draw_lanes(axis: Any, lanes: Iterable[NDArray], colour: str = LANE) -> None:
    """Centre lines on a matplotlib axis."""
    for points in lanes:
        axis.plot(points[:, 0], points[:, 1], color=colour, linewidth=0.9, zorder=1, solid_capstyle="round")


def tidy(axis: Any, title: str = "") -> None:
    """Equal metres both ways, no ticks."""
    axis.set_aspect("equal")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    for spine in axis.spines.values():
        spine.set_color("0.85")


def draw_scene(local: LocalScene, forecast: tuple[NDArray, NDArray] | None = None, title: str = "") -> Any:
    """A scene in its agent's frame: lanes, past (blue), future (green), and forecasts with probabilities if given."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 5.5))
    draw_lanes(axis, local.lanes)
    for track in local.tracks[1:]:
        axis.plot(track.xy[:, 0], track.xy[:, 1], color="tab:gray", linewidth=1.4, zorder=2)
    agent = local.tracks[0].xy
    draw_agent(axis, agent[:HISTORY], agent[HISTORY - 1 :] if len(agent) > HISTORY else None)
    if forecast is not None:
        draw_modes(axis, *forecast)
    axis.legend(fontsize=8, loc="lower left")
    tidy(axis, title or local.name)
    axis.set(xlim=(-BOX, BOX), ylim=(-BOX, BOX))
    return figure


def draw_agent(axis: Any, past: NDArray, truth: NDArray | None) -> None:
    """2 s observed in blue, 3 s to come in green."""
    axis.plot(past[:, 0], past[:, 1], color=PAST, linewidth=2.4, zorder=4, label="observed, 2 s")
    if truth is not None:
        axis.plot(truth[:, 0], truth[:, 1], color=TRUTH, linewidth=2.4, zorder=3, label="true, 3 s")


def draw_modes(axis: Any, paths: NDArray, probabilities: NDArray) -> None:
    """Forecasts (K, T, 2), the likelier the more opaque, each with its probability at its end."""
    for k, (path, p) in enumerate(zip(paths, probabilities, strict=True)):
        alpha = 0.35 + 0.65 * float(p) / max(float(probabilities.max()), 1e-9)
        label = "forecast" if k == 0 else None
        axis.plot(path[:, 0], path[:, 1], color="tab:orange", linewidth=1.5, alpha=alpha, zorder=5, label=label)
        axis.plot(*path[-1], marker="o", color="tab:orange", markersize=3.5, alpha=alpha, zorder=6)
        side = 4 if k % 2 == 0 else -4
        axis.annotate(
            f"{p:.0%}", path[-1], xytext=(side, 3), textcoords="offset points", fontsize=6.5, zorder=7,
            ha="left" if side > 0 else "right",
        )  # fmt: skip


def draw_augmentation(vector_map: VectorMap, scenes: Sequence[Scene], radius: float = 90.0) -> Any:
    """The map before and after augmentation, with a generated agent of each kind, one row a map function.

    Takes the first augmented scene of each kind; None if there is none.
    """
    from matplotlib import pyplot as plt

    chosen: dict[int, Scene] = {}
    for scene in scenes:
        if scene.augmentation and _bent(scene) > 0.5:
            chosen.setdefault(scene.augmentation.kind, scene)
    if not chosen:
        return None
    figure, axes = plt.subplots(len(chosen), 2, figsize=(8.4, 4.3 * len(chosen)), squeeze=False)
    for row, (kind, scene) in zip(axes, sorted(chosen.items()), strict=True):
        a = scene.augmentation
        assert a is not None
        xy = scene.agent.xy
        centre = xy[len(xy) // 2]
        lanes = [lane.points for lane in vector_map.lanes.values()]
        name = {0: "smooth turn", 1: "double turn"}.get(kind, "map function")
        for axis, move, title in ((row[0], a.undo, "original map"), (row[1], None, f"{name}, power {a.power:g}")):
            draw_lanes(axis, lanes if move else [a.apply(points) for points in lanes])
            path = move(xy) if move else xy
            axis.plot(path[:, 0], path[:, 1], color="tab:red", linewidth=2, zorder=3)
            axis.plot(*path[-1], marker="o", color="tab:red", markersize=4, zorder=4)
            middle = move(centre) if move else centre
            axis.set(xlim=(middle[0] - radius, middle[0] + radius), ylim=(middle[1] - radius, middle[1] + radius))
            tidy(axis, title)
        row[0].plot([], [], color="tab:red", label="agent driven on the augmented map, shown undone here")
        row[0].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    return figure


def _bent(scene: Scene) -> float:
    """By how many metres the sideways shift changes along a scene."""
    assert scene.augmentation is not None
    return float(np.ptp(scene.augmentation.shift(scene.agent.xy[:, 0])))

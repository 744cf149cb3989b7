"""Scenes whose map is not at hand: arcs that the agent could follow stand in for lanes.

They come from the observed positions alone, so that a forecast scored on such a scene has not seen the future; they
know nothing of the road.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from zoo.driving.features import Frame, LocalScene, localise
from zoo.driving.maps import MAX_POINTS, Lane, VectorMap
from zoo.driving.scenes import HISTORY, Scene

RADII = (12.0, 25.0, 60.0)  # metres, to either side; and straight on
_AHEAD, _BEHIND, _MOST_TURN = 45.0, 25.0, np.radians(120)


def arc_map(city: str, history: NDArray[np.float64]) -> VectorMap:
    """A map of one straight lane up to where the agent is and seven that lead on: straight, and arcs of `RADII`.

    Args:
        history: (20, 2) metres, city frame.
    """
    frame = Frame.of(history)
    curvatures = [0.0, *(sign / radius for radius in RADII for sign in (1, -1))]
    lines = [np.stack([np.zeros(MAX_POINTS), np.linspace(-_BEHIND, 0, MAX_POINTS)], axis=1)]
    for curvature in curvatures:
        length = min(_AHEAD, _MOST_TURN / abs(curvature)) if curvature else _AHEAD
        s = np.linspace(0, length, MAX_POINTS)
        if curvature:  # agent frame: +y is ahead, positive curvature turns left
            line = np.stack([(np.cos(s * curvature) - 1) / curvature, np.sin(s * curvature) / curvature], axis=1)
        else:
            line = np.stack([np.zeros_like(s), s], axis=1)
        lines.append(line)
    ahead = tuple(range(1, len(lines)))
    lanes = {0: Lane(0, frame.to_city(lines[0]), successors=ahead)}
    for number in ahead:
        lanes[number] = Lane(number, frame.to_city(lines[number]), predecessors=(0,))
    return VectorMap(city, lanes)


def localise_without_map(scene: Scene) -> LocalScene:
    """`localise` on arcs; an augmented scene is taken as driven, its positions are on the bent map already."""
    arcs = arc_map(scene.city, scene.agent.xy[:HISTORY])
    return localise(replace(scene, augmentation=None), arcs)

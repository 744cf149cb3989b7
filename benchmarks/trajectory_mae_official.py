"""Runs the official preprocessing on made-up maps, for `trajectory_mae.py speed --official`.

Get it with `git clone https://github.com/Tsinghua-MARS-Lab/DenseTNT`; its `src` is the folder asked for. Argoverse's
own map class is not on the package index, so a stand-in answers its three calls from our maps, without the height
raster: that favours the official side.
"""

from __future__ import annotations

import importlib
import pickle
import sys
import types
import zlib
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.driving.maps import VectorMap


class StandInMap:
    """What the official code asks of a map."""

    def __init__(self, town: VectorMap) -> None:
        lanes = {
            lane.id: Namespace(
                has_traffic_control=lane.traffic_control,
                turn_direction=lane.turn,
                is_intersection=lane.intersection,
                centerline=np.column_stack([lane.points, np.zeros(len(lane.points))]),
            )
            for lane in town.lanes.values()
        }
        self.city_lane_centerlines_dict = {town.city: lanes}
        self._boxes = np.array([[*lane.points.min(0), *lane.points.max(0)] for lane in town.lanes.values()])
        self._ids = list(town.lanes)

    def get_lane_ids_in_xy_bbox(
        self, x: float, y: float, city: str, query_search_range_manhattan: float = 50.0
    ) -> list[int]:
        b, r = self._boxes, query_search_range_manhattan
        near = (b[:, 0] <= x + r) & (b[:, 2] >= x - r) & (b[:, 1] <= y + r) & (b[:, 3] >= y - r)
        return [self._ids[index] for index in np.flatnonzero(near)]

    def get_lane_segment_centerline(self, lane_id: int, city: str) -> np.ndarray:
        return self.city_lane_centerlines_dict[city][lane_id].centerline


def official_pipeline(src: Path, town: VectorMap) -> Callable[[Path], tuple[np.ndarray, bytes]]:
    """A function from a CSV to its feature matrix and the compressed pickle that the official code keeps."""
    sys.path.insert(0, str(src))
    sys.modules.setdefault("utils_cython", types.ModuleType("utils_cython"))  # only evaluation calls it
    for name in ("argoverse", "argoverse.map_representation", "argoverse.map_representation.map_api"):
        sys.modules.setdefault(name, types.ModuleType(name))
    vars(sys.modules["argoverse.map_representation.map_api"])["ArgoverseMap"] = StandInMap
    utils, dataset = importlib.import_module("utils"), importlib.import_module("dataset_argoverse")
    options = ("semantic_lane", "direction", "goals_2D", "subdivide", "lane_scoring", "goal_scoring", "laneGCN")
    args = Namespace(
        hidden_size=128, max_distance=50.0, use_map=True, not_use_api=False, no_agents=False, visualize=False,
        do_test=False, do_eval=False, argoverse=True, argoverse2=False, future_frame_num=30, agent_type=None,
        other_params=dict.fromkeys(options, True),
    )  # fmt: skip
    utils.args = args
    settings: Any = dataset
    settings.args, settings.am, settings.max_vector_num = args, StandInMap(town), 10**9

    def run(file: Path) -> tuple[np.ndarray, bytes]:
        with open(file, encoding="utf-8") as opened:
            lines = opened.readlines()[1:]
        instance = dataset.argoverse_get_instance(lines, str(file), args)
        return instance["matrix"], zlib.compress(pickle.dumps(instance))

    return run

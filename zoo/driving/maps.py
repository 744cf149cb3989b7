"""Argoverse 1 vector maps: reading, writing, and which lanes lie around a point."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoo.errors import ZooError

CITIES = {"MIA": 10316, "PIT": 10314}  # the number is part of Argoverse's file names
MAX_POINTS = 10  # a lane's centre line has 2 to 10 points; longer ones are resampled


@dataclass(frozen=True)
class Lane:
    """A lane segment.

    Attributes:
        points: (2 to 10, 2) centre line in driving direction, metres, city frame.
        turn: "LEFT", "RIGHT" or "NONE".
        predecessors, successors: ids of the lanes that lead in and on.
    """

    id: int
    points: NDArray[np.float64]
    traffic_control: bool = False
    turn: str = "NONE"
    intersection: bool = False
    predecessors: tuple[int, ...] = ()
    successors: tuple[int, ...] = ()
    left: int | None = None
    right: int | None = None


@dataclass
class VectorMap:
    """A city's lanes. `boxes` (N, 4: min x, min y, max x, max y), if given, are Argoverse's own lane boxes."""

    city: str
    lanes: dict[int, Lane]
    boxes: NDArray[np.float64] | None = field(default=None, repr=False)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        return np.array(list(self.lanes), dtype=np.int64)

    @cached_property
    def _boxes(self) -> NDArray[np.float64]:
        if self.boxes is not None:
            return self.boxes
        if not self.lanes:
            return np.zeros((0, 4))
        return np.array([[*lane.points.min(0), *lane.points.max(0)] for lane in self.lanes.values()])

    def around(self, x: float, y: float, radius: float = 50.0) -> list[Lane]:
        """Lanes whose box overlaps the square of half side `radius` around (x, y), in the map's order.

        One comparison over all boxes: 10,000 lanes take about 50 us, less than building an index for one scene.
        """
        b = self._boxes
        near = (b[:, 0] <= x + radius) & (b[:, 2] >= x - radius) & (b[:, 1] <= y + radius) & (b[:, 3] >= y - radius)
        return [self.lanes[int(lane_id)] for lane_id in self.ids[near]]


def check_city(city: str, where: str) -> str:
    """`city` itself; `ZooError` if Argoverse has none of that name."""
    if city not in CITIES:
        raise ZooError(f"{where}: unknown city {city!r}; Argoverse has {' and '.join(CITIES)}.")
    return city


def map_file(folder: Path, city: str) -> Path:
    """Where Argoverse keeps a city's lanes below a `map_files` folder."""
    return folder / f"pruned_argoverse_{city}_{CITIES[city]}_vector_map.xml"


def find_map_folder(path: Path) -> Path:
    """The map folder for a CSV or data folder: itself or a `map_files` in it or up to three levels above it."""
    start = path if path.is_dir() else path.parent
    for folder in (start, *list(start.resolve().parents)[:3]):
        for candidate in (folder, folder / "map_files"):
            if any(map_file(candidate, city).is_file() for city in CITIES):
                return candidate
    raise ZooError(
        f"No vector map (pruned_argoverse_*_vector_map.xml) in {start} or in a map_files folder there or above: "
        "say where they are (--map, data.map_dir), or go without (--no-map)."
    )


def read_maps(folder: Path) -> dict[str, VectorMap]:
    """All cities' maps below `folder`."""
    found = {city: read_map(map_file(folder, city), city) for city in CITIES if map_file(folder, city).is_file()}
    if not found:
        raise ZooError(f"{folder} holds no pruned_argoverse_*_vector_map.xml.")
    return found


def read_map(path: Path, city: str) -> VectorMap:
    """Reads a vector map XML, and the lane boxes beside it where they are.

    Raises `ZooError` that names the file and the lane for a node that does not exist, a lane with fewer than two
    points, or a coordinate that is not a number.
    """
    nodes: dict[int, tuple[float, float]] = {}
    lanes: dict[int, Lane] = {}
    try:
        for _, element in ET.iterparse(path):
            if element.tag == "node":
                nodes[int(element.attrib["id"])] = (float(element.attrib["x"]), float(element.attrib["y"]))
                element.clear()
            elif element.tag == "way":
                lane = _lane(element, nodes, path)
                lanes[lane.id] = lane
                element.clear()
    except ET.ParseError as error:
        raise ZooError(f"{path} is not a vector map: {error}.") from error
    except OSError as error:
        raise ZooError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (KeyError, ValueError) as error:
        number = element.attrib.get("id") or element.attrib.get("lane_id") or "without a number"
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ZooError(f"{path}: {element.tag} {number}: {what}.") from error
    if not lanes:
        raise ZooError(f"{path} holds no lanes.")
    return VectorMap(city, lanes, _read_boxes(path.parent, city, lanes))


def _lane(way: ET.Element, nodes: dict[int, tuple[float, float]], path: Path) -> Lane:
    lane_id = int(way.attrib["lane_id"])
    refs = [int(nd.attrib["ref"]) for nd in way.iter("nd")]
    missing = [ref for ref in refs if ref not in nodes]
    if missing:
        raise ZooError(f"{path}: lane {lane_id} goes through node {missing[0]}, which is not in the file.")
    points = np.array([nodes[ref] for ref in refs], dtype=np.float64).reshape(-1, 2)
    check_centre_line(points, f"{path}: lane {lane_id}")
    tags: dict[str, list[str]] = {}
    for tag in way.iter("tag"):
        tags.setdefault(tag.attrib["k"], []).append(tag.attrib["v"])

    def ids(key: str) -> tuple[int, ...]:
        return tuple(int(value) for value in tags.get(key, []) if value != "None")

    return Lane(
        lane_id,
        resample(points),
        traffic_control=tags.get("has_traffic_control", ["False"])[0] == "True",
        turn=tags.get("turn_direction", ["NONE"])[0],
        intersection=tags.get("is_intersection", ["False"])[0] == "True",
        predecessors=ids("predecessor"),
        successors=ids("successor"),
        left=next(iter(ids("l_neighbor_id")), None),
        right=next(iter(ids("r_neighbor_id")), None),
    )


def check_centre_line(points: NDArray[np.float64], where: str) -> None:
    """Raises `ZooError` for a centre line that no vector can be made of."""
    if points.ndim != 2 or points.shape[1] < 2 or len(points) < 2:
        raise ZooError(f"{where}: a centre line is at least two points (x, y), not shape {points.shape}.")
    if not np.isfinite(points[:, :2]).all():
        raise ZooError(f"{where}: a coordinate of the centre line is not a number.")


def resample(points: NDArray[np.float64], always: bool = False) -> NDArray[np.float64]:
    """A line of more than 10 points as 10, equally far apart along it; a shorter one as it is, unless `always`."""
    if len(points) <= MAX_POINTS and not always:
        return points
    along = np.concatenate([[0.0], np.hypot(*np.diff(points[:, :2], axis=0).T).cumsum()])
    wanted = np.linspace(0, along[-1], MAX_POINTS)
    return np.stack([np.interp(wanted, along, points[:, axis]) for axis in (0, 1)], axis=1)


def _read_boxes(folder: Path, city: str, lanes: dict[int, Lane]) -> NDArray[np.float64] | None:
    """Argoverse's table of lane boxes (a little wider than the centre lines'), in the order of `lanes`."""
    table = folder / f"{city}_{CITIES[city]}_halluc_bbox_table.npy"
    index = folder / f"{city}_{CITIES[city]}_tableidx_to_laneid_map.json"
    if not (table.is_file() and index.is_file()):
        return None
    boxes = np.load(table)
    row_of = {int(lane_id): int(row) for row, lane_id in json.loads(index.read_text()).items()}
    if any(lane_id not in row_of for lane_id in lanes):
        raise ZooError(f"{index} does not list every lane of the map beside it.")
    return boxes[[row_of[lane_id] for lane_id in lanes]].astype(np.float64)


def write_map(vector_map: VectorMap, folder: Path) -> Path:
    """Writes the map as Argoverse's XML into `folder`; returns the file."""
    root = ET.Element("ArgoverseVectorMap")
    number: dict[tuple[float, float], int] = {}
    ways = []
    for lane in vector_map.lanes.values():
        way = ET.Element("way", lane_id=str(lane.id))
        values = [
            ("has_traffic_control", str(lane.traffic_control)),
            ("turn_direction", lane.turn),
            ("is_intersection", str(lane.intersection)),
            ("l_neighbor_id", str(lane.left)),
            ("r_neighbor_id", str(lane.right)),
            *(("predecessor", str(other)) for other in lane.predecessors),
            *(("successor", str(other)) for other in lane.successors),
        ]
        for key, value in values:
            ET.SubElement(way, "tag", k=key, v=value)
        for x, y in lane.points:
            node = number.setdefault((float(x), float(y)), len(number))
            ET.SubElement(way, "nd", ref=str(node))
        ways.append(way)
    for (x, y), node in number.items():
        ET.SubElement(root, "node", id=str(node), x=repr(x), y=repr(y))
    root.extend(ways)
    folder.mkdir(parents=True, exist_ok=True)
    path = map_file(folder, vector_map.city)
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    return path

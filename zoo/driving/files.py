"""A scene's file and the map that belongs to it, whichever Argoverse it comes from."""

from __future__ import annotations

from pathlib import Path

from zoo.driving.argoverse2 import archive_of, is_scenario, read_archive, read_scenario, scenario_files
from zoo.driving.maps import VectorMap, find_map_folder, read_maps
from zoo.driving.scenes import Scene, read_scene
from zoo.errors import ZooError


def scene_files(folder: Path) -> list[Path]:
    """Scenes of a folder (Argoverse 1: `*.csv` in it or in its `data`; Argoverse 2: scenarios), in order of name."""
    inside = folder / "data" if (folder / "data").is_dir() else folder
    files = sorted(path for path in inside.glob("*.csv") if not path.name.startswith("."))
    files = files or scenario_files(folder)
    if not files:
        raise ZooError(f"No scenes in {inside}: neither *.csv (Argoverse 1) nor */scenario_*.parquet (Argoverse 2).")
    return files


def read_any_scene(path: Path, need_future: bool = True) -> Scene:
    """An Argoverse 1 CSV or an Argoverse 2 scenario."""
    return read_scenario(path, need_future) if is_scenario(path) else read_scene(path, need_future)


class MapSource:
    """Where the maps of scenes come from; each folder of Argoverse 1's maps is read once.

    Args:
        given: a folder of vector maps; None looks beside and above each scene. Argoverse 2's scenarios have a map of
            their own, which is taken whatever is given.
    """

    def __init__(self, given: Path | None = None) -> None:
        self.given = given
        self._read: dict[Path, dict[str, VectorMap]] = {}

    def of(self, path: Path, city: str) -> VectorMap:
        """The map of the scene in file `path`. Raises `ZooError` if there is none of its city."""
        if is_scenario(path):
            return read_archive(archive_of(path), city)
        folder = self.given or find_map_folder(path)
        if folder not in self._read:
            self._read[folder] = read_maps(folder)
        if city not in self._read[folder]:
            raise ZooError(f"{path} is in {city}, the map folder only has {', '.join(self._read[folder])}.")
        return self._read[folder][city]

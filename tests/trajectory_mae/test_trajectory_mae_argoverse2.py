"""Argoverse 2 scenarios, written here in the published schema: reading, the data module, scoring, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.trajectory_mae import DrivingDataModule
from zoo.cli.app import main as zoo_main
from zoo.driving.argoverse2 import archive_of, read_archive, read_scenario
from zoo.driving.features import localise
from zoo.driving.files import MapSource, read_any_scene, scene_files
from zoo.errors import ZooError


def rows(track: str, kind: str, steps, x, y, city: str = "ATX") -> dict[str, list]:
    count = len(steps)
    return {
        "observed": [bool(step < 50) for step in steps], "track_id": [track] * count, "object_type": [kind] * count,
        "object_category": [3 if track == "7" else 1] * count, "timestep": [int(step) for step in steps],
        "position_x": [float(value) for value in x], "position_y": [float(value) for value in y],
        "heading": [0.0] * count, "velocity_x": [1.0] * count, "velocity_y": [0.0] * count,
        "scenario_id": ["s"] * count, "focal_track_id": ["7"] * count, "city": [city] * count,
    }  # fmt: skip


def line(*points: tuple[float, float]) -> list[dict[str, float]]:
    return [{"x": x, "y": y, "z": 12.0} for x, y in points]


def segment(number: int, **changed) -> dict:
    """A lane of 40 m along x, 4 m wide, around y = 100."""
    found = {
        "id": number, "is_intersection": False, "lane_type": "VEHICLE", "left_lane_mark_type": "NONE",
        "right_lane_mark_type": "NONE", "left_lane_boundary": line((1000, 102), (1010, 102), (1040, 102)),
        "right_lane_boundary": line((1000, 98), (1040, 98)), "predecessors": [], "successors": [2],
        "left_neighbor_id": None, "right_neighbor_id": 3,
    }  # fmt: skip
    return {**found, **changed}


def write(folder: Path, tracks: list[dict[str, list]], lanes: list[dict], name: str = "s") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = {key: [value for track in tracks for value in track[key]] for key in tracks[0]}
    path = folder / f"scenario_{name}.parquet"
    pq.write_table(pa.table(table), path)
    archive = {
        "drivable_areas": {},
        "pedestrian_crossings": {},
        "lane_segments": {str(one["id"]): one for one in lanes},
    }
    archive_of(path).write_text(json.dumps(archive))
    return path


def example(folder: Path, name: str = "s", steps: int = 110, offset: float = 0.0) -> Path:
    every, some = np.arange(steps), np.arange(20, 45)
    tracks = [
        rows("12", "pedestrian", some, 1005 + 0 * some, 90 + 0.1 * some),
        rows("7", "vehicle", every, 990 + 0.5 * every + offset, 100 + 0 * every),
        rows("AV", "vehicle", every, 985 + 0.5 * every, 96 + 0 * every),
        rows("55", "static", every, 1001 + 0 * every, 95 + 0 * every),
        rows("60", "vehicle", np.arange(5), [0] * 5, [0] * 5),  # gone before the window begins
    ]
    curve = [(1040 + 10 * np.sin(a), 100 + 10 * (1 - np.cos(a))) for a in np.linspace(0, np.pi / 2, 15)]
    lanes = [
        segment(1),
        segment(2, centerline=line(*curve), is_intersection=True, predecessors=[1], successors=[]),
        segment(3, lane_type="BIKE"),
    ]
    return write(folder, tracks, lanes, name)


def test_a_scenario_is_read_around_its_present(tmp_path):
    path = example(tmp_path)
    scene = read_scenario(path)
    assert (scene.name, scene.city) == ("scenario_s.parquet", "ATX")
    assert [track.kind for track in scene.tracks] == ["AGENT", "AV", "OTHERS"]  # no static thing, nobody long gone
    agent, _, other = scene.tracks
    np.testing.assert_allclose(agent.times, np.arange(50) * 0.1)
    np.testing.assert_allclose(agent.xy[[0, 19, 49], 0], 990 + 0.5 * np.array([30, 49, 79]))
    np.testing.assert_allclose(other.times[[0, -1]], [0.0, 1.4])  # steps 30 to 44
    test = read_any_scene(example(tmp_path / "test", steps=50), need_future=False)
    assert len(test.agent.times) == 20


def test_lanes_have_centre_lines_turns_and_their_neighbours(tmp_path):
    path = example(tmp_path)
    lanes = read_archive(archive_of(path), "ATX").lanes
    assert list(lanes) == [1, 2]  # no bicycle lane
    np.testing.assert_allclose(lanes[1].points[:, 1], 100)  # halfway between the boundaries
    np.testing.assert_allclose(lanes[1].points[[0, -1], 0], [1000, 1040])
    assert lanes[1].turn == "NONE"
    assert (lanes[1].successors, lanes[1].left, lanes[1].right) == ((2,), None, 3)
    assert lanes[2].points.shape == (10, 2)
    assert lanes[2].turn == "LEFT"
    assert lanes[2].intersection
    local = localise(read_scenario(path), MapSource().of(path, "ATX"))
    assert len(local.lanes) == 2
    np.testing.assert_allclose(local.lane_flags, [[-1, 0, -1], [-1, -1, 1]])
    right = [[(x, -y) for x, y in [(0, 0), (5, 0), (8, 5)]], [(0, 0), (9, 0.5)]]
    for points, turn in zip(right, ("RIGHT", "NONE"), strict=True):
        write(tmp_path / "r", [rows("7", "vehicle", range(110), range(110), range(110))],
              [segment(1, centerline=line(*points), is_intersection=True)])  # fmt: skip
        assert read_archive(tmp_path / "r" / "log_map_archive_s.json", "ATX").lanes[1].turn == turn


def test_the_folder_goes_through_training_scoring_and_pictures(tmp_path, capsys):
    for split, steps, count in (("train", 110, 3), ("val", 110, 2), ("test", 50, 1)):
        for index in range(count):
            example(tmp_path / "av2" / split / f"{split}{index}", f"{split}{index}", steps, offset=0.3 * index)
    files = scene_files(tmp_path / "av2" / "train")
    assert [path.name for path in files] == [f"scenario_train{index}.parquet" for index in range(3)]
    data = DrivingDataModule(
        str(tmp_path / "av2"), task="forecast", batch_size=2, cache_dir=str(tmp_path / "c"), predict_split="test"
    )
    data.setup("fit")
    assert (len(data.train_data), len(data.val_data)) == (3, 2)
    batch = next(iter(data.val_dataloader()))
    assert batch["future"].shape[:2] == (2, 30)
    np.testing.assert_allclose(batch["future"][0, -1].numpy(), [0, 15], atol=1e-3)  # 3 s at 5 m/s, straight on
    data.setup("predict")
    assert data.predict_names == ["scenario_test0.parquet"]
    assert data.raw_sample() == scene_files(tmp_path / "av2" / "val")[0]
    zoo_main(["driving", "score", "trajectory-mae-town", str(tmp_path / "av2" / "val")])
    assert "2 scenes" in capsys.readouterr().out
    target = tmp_path / "scene.png"
    zoo_main(["driving", "plot", str(files[0]), "--model", "trajectory-mae-town", "-o", str(target)])
    assert "2 lanes, 3 road users, with the truth" in capsys.readouterr().out
    assert target.is_file()
    zoo_main(["predict", "trajectory-mae-town", str(tmp_path / "av2" / "test"), "-o", str(tmp_path / "f.json")])
    (forecast,) = json.loads((tmp_path / "f.json").read_text()).values()
    assert np.shape(forecast["trajectories"]) == (6, 30, 2)
    with pytest.raises(SystemExit) as stop:
        zoo_main(["driving", "submit", "trajectory-mae-town", str(tmp_path / "av2"), "-o", str(tmp_path / "s.h5")])
    assert stop.value.code == 2
    assert "wants 6 s" in capsys.readouterr().err


def test_what_cannot_be_a_scenario_is_named(tmp_path):
    steps = np.arange(110)
    good = rows("7", "vehicle", steps, 1000 + steps, 100 + 0 * steps)
    bad_position = {**good, "position_x": [float("nan") if step == 60 else 0.0 for step in steps]}
    gap = rows("7", "vehicle", np.delete(steps, 40), np.zeros(109), np.zeros(109))
    short = rows("7", "vehicle", steps[:50], np.zeros(50), np.zeros(50))
    other = rows("8", "vehicle", steps, steps, steps)
    twice = rows("8", "vehicle", [31, 31], [0, 0], [0, 0])
    for tracks, said in (
        ([bad_position], "row 60: the position is not a finite number"),
        ([gap], "focal track 7 has no row of timestep 40; 30 to 79 are needed"),
        ([short], "focal track 7 has no row of timestep 50"),
        ([other], "focal track 7 has no row of timestep 30"),
        ([good, good], "focal track 7 has two rows of one timestep"),
        ([good, twice], "track 8 has two rows of one timestep"),
        ([{key: value for key, value in good.items() if key != "city"}], "no column city"),
        ([{**good, "position_y": ["a"] * 110}], "a position or timestep is no number"),
        ([{key: [] for key in good}], "no rows"),
    ):
        with pytest.raises(ZooError, match=said) as caught:
            read_scenario(write(tmp_path, tracks, [segment(1)]))
        assert "scenario_s.parquet" in str(caught.value)
    (tmp_path / "scenario_x.parquet").write_text("no Parquet")
    with pytest.raises(ZooError, match=r"scenario_x\.parquet is no readable Parquet file") as caught:
        read_scenario(tmp_path / "scenario_x.parquet")
    assert "\n" not in str(caught.value)


def test_maps_that_do_not_fit_are_named(tmp_path):
    path = write(tmp_path, [rows("7", "vehicle", range(110), range(110), range(110))], [segment(1)])
    for lanes, said in (
        ([segment(4, centerline=line((0, 0)))], "lane 4: a centre line is at least two points"),
        ([segment(4, left_lane_boundary=[])], "lane 4: a centre line is at least two points"),
        ([segment(4, centerline=line((0, 0), (float("nan"), 1)))], "lane 4: a coordinate"),
        ([{key: value for key, value in segment(4).items() if key != "successors"}], "lane 4: 'successors' is missing"),
        ([segment(4, centerline=[[0, 0], [1, 1]])], "lane 4 cannot be read"),
        ([segment(4, lane_type="BIKE")], "no lanes for vehicles"),
    ):
        write(tmp_path, [rows("7", "vehicle", range(110), range(110), range(110))], lanes)
        with pytest.raises(ZooError, match=said):
            MapSource().of(path, "ATX")
    archive_of(path).write_text("{}")
    with pytest.raises(ZooError, match="no map of Argoverse 2"):
        MapSource().of(path, "ATX")
    archive_of(path).unlink()
    with pytest.raises(ZooError, match=r"no map log_map_archive_s\.json beside the scenario"):
        MapSource().of(path, "ATX")
    with pytest.raises(ZooError, match="neither"):
        scene_files(tmp_path / "nothing")

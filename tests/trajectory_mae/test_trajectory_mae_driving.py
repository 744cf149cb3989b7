"""Map functions, towns, the rule-based agents, reading and writing, bad input, data module, commands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.trajectory_mae import DrivingDataModule
from zoo.cli.app import main
from zoo.driving.agents import Rules, drive
from zoo.driving.audit import heading_change, worst
from zoo.driving.deform import AUGMENT_TYPES, Augmentation, DoubleTurn, SmoothTurn, map_function
from zoo.driving.features import localise
from zoo.driving.maps import read_map, write_map
from zoo.driving.scenes import AUGMENT_COLUMNS, COLUMNS, parse_scene, read_scene, write_scene
from zoo.driving.store import decode, encode
from zoo.driving.synthesis import generate_scenes, synthesize, windows
from zoo.driving.towns import make_town
from zoo.errors import ZooError


@pytest.fixture(scope="module")
def town():
    return make_town(2, size=3)


# ---------------------------------------------------------------------- map functions


def test_map_functions_as_the_paper_states_them():
    turn = SmoothTurn(10)
    assert [float(turn.f(np.array(u))) for u in (39.0, 50.0, 60.0, 120.0)] == pytest.approx([0, 0.5, 10.5, 70.5])
    assert float(DoubleTurn(7).f(np.array(60.0))) == pytest.approx(7)
    assert float(DoubleTurn(7).f(np.array(200.0))) == pytest.approx(7)


@pytest.mark.parametrize("kind", AUGMENT_TYPES)
def test_derivative_is_the_slope(kind):
    function, u, h = map_function(kind, 5.0), np.linspace(-10, 150, 3001) + 1e-3, 1e-5
    slope = (function.f(u + h) - function.f(u - h)) / (2 * h)
    np.testing.assert_allclose(function.f_prime(u), slope, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", AUGMENT_TYPES)
@pytest.mark.parametrize("direction", [0, 1])
def test_augmentation_is_undone_exactly_and_keeps_x(kind, direction):
    augmentation, points = Augmentation(-5.0, kind, direction, 4.0), np.random.default_rng(0).uniform(-90, 200, (50, 2))
    moved = augmentation.apply(points)
    assert (moved[:, 0] == points[:, 0]).all()
    np.testing.assert_allclose(augmentation.undo(moved), points, rtol=0, atol=1e-12)
    assert np.abs(moved[:, 1] - points[:, 1]).max() > 1


# ---------------------------------------------------------------------- towns and agents


def test_towns_join_up():
    for seed in range(20):
        town = make_town(seed, size=3)
        for lane in town.lanes.values():
            assert 2 <= len(lane.points) <= 10
            assert lane.successors
            for other in lane.successors:
                np.testing.assert_allclose(lane.points[-1], town.lanes[other].points[0], rtol=0, atol=1e-6)
                assert lane.id in town.lanes[other].predecessors


@pytest.mark.parametrize("augmented", [False, True])
def test_runs_keep_the_rules_on_many_maps(augmented):
    """Hundreds here; `benchmarks/trajectory_mae.py rules --maps 3000` for thousands."""
    rules, kept, found = Rules(seconds=6.0), 0, {}
    for seed in range(150):
        town = make_town(seed, size=2 + seed % 2)
        runs = drive(town, range(2), seed, augmented, rules)
        kept += sum(run.rejected is None for run in runs)
        found = {name: max(found.get(name, 0.0), value) for name, value in worst(town, runs).items()}
    assert kept > 250
    assert found["speed"] <= 1.05 * rules.desired_speed
    assert found["acceleration"] <= 1.05 * rules.max_acceleration
    assert found["lateral"] <= rules.max_jump * rules.max_lateral
    assert found["curvature"] <= 1.05 * np.tan(rules.max_steer) / rules.wheel_base
    assert found["jump"] <= 1.05 * rules.desired_speed
    assert found["path"] <= rules.max_offset
    # The centre line between two points of a lane is straight; on a bent map the path follows the bend itself.
    assert found["lane"] < (1.6 if augmented else 1.0)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"max_offset": 0.001}, "off the lane"),
        ({"max_jump": 0.1}, "lateral acceleration"),
        ({"min_seconds": 30.0}, "too short"),
    ],
)
def test_runs_that_break_a_rule_are_thrown_away(town, broken, reason):
    runs = drive(town, range(8), 0, False, Rules(seconds=10.0, **broken))
    assert {run.rejected for run in runs} & {reason}
    assert not generate_scenes(town, 4, 0, 0.0, Rules(seconds=4.0))  # not one whole window


def test_a_jump_or_a_detour_is_found(town):
    run = drive(town, [0], 0, False)[0]
    teleported = run.xy.copy()
    teleported[30:] += 5
    found = worst(town, [replace(run, xy=teleported)])
    assert found["jump"] > 40
    assert found["path"] > 2
    assert found["lane"] > 1
    left = np.stack([np.sin(np.linspace(0, 1.2, 50)), 1 - np.cos(np.linspace(0, 1.2, 50))], axis=1) * 20
    assert heading_change(left) == pytest.approx(np.degrees(1.2), abs=8)


def test_a_run_depends_on_its_number_alone(town):
    together, alone = drive(town, range(6), 5, True), drive(town, [4], 5, True)[0]
    np.testing.assert_array_equal(together[4].xy, alone.xy)
    assert together[4].augmentation == alone.augmentation
    assert not np.array_equal(together[4].xy, drive(town, [4], 6, True)[0].xy)
    used = {(run.augmentation.kind, run.augmentation.direction) for run in drive(town, range(30), 0, True)}
    assert used == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_windows_are_fifty_rows_every_two_seconds(town):
    run = drive(town, [0], 0, False)[0]
    scenes = list(windows(run, "PIT"))
    assert len(scenes) == (len(run.xy) - 50) // 20 + 1
    for k, scene in enumerate(scenes, start=1):
        assert scene.name == f"dv10PIT_0_id_{k}_tr_5.0_ti_2.0.csv"
        assert scene.start == 2.0 * (k - 1)
        np.testing.assert_array_equal(scene.agent.xy, run.xy[20 * (k - 1) : 20 * (k - 1) + 50])


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("augmented", [0.0, 1.0])
def test_written_scenes_read_back(town, tmp_path, augmented):
    scene = generate_scenes(town, 2, 0, augmented)[3]
    path = write_scene(scene, tmp_path)
    header, first = path.read_text().splitlines()[:2]
    assert header == ",".join(COLUMNS + (AUGMENT_COLUMNS if augmented else ()))
    assert first.split(",")[1:3] == ["52180", "AGENT"]
    again = read_scene(path)
    assert again.augmentation == scene.augmentation
    np.testing.assert_allclose(again.agent.xy, scene.agent.xy, rtol=1e-5, atol=0)  # 6 digits, as released
    read = read_map(write_map(town, tmp_path), "MIA")
    assert list(read.lanes) == list(town.lanes)
    assert all(np.array_equal(read.lanes[i].points, town.lanes[i].points) for i in read.lanes)
    local = localise(scene, town)
    back = decode(encode(local), local.name, local.city)
    assert all(np.array_equal(a, b) for a, b in zip(local.lanes, back.lanes, strict=True))
    assert np.array_equal(local.tracks[0].xy, back.tracks[0].xy)


def test_synthesis_is_the_same_for_any_number_of_processes(town, tmp_path):
    write_map(town, tmp_path / "map")
    outs = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        report = synthesize(tmp_path / "map", out, 6, seed=3, processes=processes, val_share=0.34)
        outs.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
        assert report.scenes == len(list(out.rglob("*.csv")))
    assert outs[0] == outs[1]
    for split in ("train", "val"):
        names = [path.name for path in outs[0] if path.parts[0] == split]
        assert {name.startswith("augmap") for name in names} == {True, False}


HEADER = ",".join(COLUMNS)
AUGMENTED = ",".join(COLUMNS + AUGMENT_COLUMNS)


def rows(count=50, step=0.1, kind="AGENT", city="MIA"):
    return [f"{315968000 + i * step:.2f},a,{kind},{i},0,{city}" for i in range(count)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER.replace(",Y", ""), *rows()], "no column Y"),
        ([HEADER], "no rows"),
        ([HEADER, *rows(kind="OTHERS")], "no track is the AGENT"),
        ([HEADER, *rows(), "315968005.00,b,AGENT,1,1,MIA"], "row 52: track b is a second AGENT beside a"),
        ([HEADER, *rows(30)], "the agent has 30 rows, 50 are needed"),
        ([HEADER, *rows(city="LAX")], "row 2: unknown city 'LAX'"),
        ([HEADER, *rows()[:30], *rows(60)[35:]], r"row 32: 0\.60 s after"),
        ([HEADER, *rows()[:4], "315968000.40,a,AGENT,nan,0,MIA", *rows()[5:]], "row 6: X is nan"),
        ([HEADER, *rows()[:4], "315968000.40,a,AGENT,x,0,MIA", *rows()[5:]], "row 6: X is 'x', not a number"),
        ([HEADER, *rows()[:4], "315968000.40,a,AGENT", *rows()[5:]], "row 6: 3 values for 6 columns"),
        ([HEADER + ",REF_xmin", *(row + ",1" for row in rows())], "needs the column AUGMENT_TYPE"),
        ([HEADER, *rows()[:9], "315968000.90,a,CAR,9,0,MIA", *rows()[10:]], "row 11: OBJECT_TYPE 'CAR'"),
        ([HEADER, *rows()[:9], "315968000.90,a,AGENT,9,0,PIT", *rows()[10:]], "row 11: city 'PIT'"),
        ([AUGMENTED, *(f"{row},1,9,0,4" for row in rows())], "row 2: AUGMENT_TYPE is one of 0, 1, 2, 3, not 9"),
        ([AUGMENTED, *(f"{row},1,0,2,4" for row in rows())], "row 2: AUGMENT_DIRECTION is 0 or 1"),
        ([AUGMENTED, *(f"{row},x,0,0,4" for row in rows())], "row 2: REF_xmin is 'x', not a number"),
        ([AUGMENTED, *(f"{row},{i},0,0,4" for i, row in enumerate(rows()))], "row 3: REF_xmin changes"),
    ],
)
def test_bad_scenes_are_named_by_file_and_row(lines, message):
    with pytest.raises(ZooError, match=message) as error:
        parse_scene("\n".join(lines), "bad.csv", "bad.csv")
    assert "bad.csv" in str(error.value)


def test_carriage_returns_missing_av_and_a_lonely_other_are_fine(town):
    scene = parse_scene("\r\n".join([HEADER, *rows(), "315968000.00,b,OTHERS,1,1,MIA"]), "x.csv", "x.csv")
    assert [track.kind for track in scene.tracks] == ["AGENT", "OTHERS"]
    with pytest.raises(ZooError, match="no lane of MIA within 50 m"):
        localise(scene, make_town(3))


def test_bad_maps_are_named(tmp_path, town):
    path = write_map(town, tmp_path)
    text = path.read_text()
    path.write_text(text.replace('<nd ref="0" />', '<nd ref="999999" />'))
    with pytest.raises(ZooError, match="goes through node 999999"):
        read_map(path, "MIA")
    path.write_text('<a><node id="1" x="0" y="0"/><way lane_id="7"><nd ref="1"/></way></a>')
    with pytest.raises(ZooError, match="lane 7: a centre line is at least two points"):
        read_map(path, "MIA")
    path.write_text('<a><node id="5" x="0" y="here"/></a>')
    with pytest.raises(ZooError, match="node 5: could not convert string to float: 'here'"):
        read_map(path, "MIA")
    path.write_text('<a><node id="5" x="0"/></a>')
    with pytest.raises(ZooError, match="node 5: 'y' is missing"):
        read_map(path, "MIA")


# ---------------------------------------------------------------------- data module and commands


def test_data_module_reads_what_was_synthesised(town, tmp_path):
    write_map(town, tmp_path / "map")
    synthesize(tmp_path / "map", tmp_path / "scenes", 6, val_share=0.34)
    for task, steps in (("pretrain", 49), ("forecast", 19)):
        data = DrivingDataModule(str(tmp_path / "scenes"), task=task, batch_size=4, cache_dir=str(tmp_path / "cache"))
        data.setup()
        assert len(data.train_data) == len(list((tmp_path / "scenes/train").rglob("*.csv")))
        batch = next(iter(data.train_dataloader()))
        assert batch["agents"].shape[2] == steps
        assert batch["lane_length"].max() == 9
        assert ("future" in batch) is (task == "forecast")
    again = DrivingDataModule(str(tmp_path / "scenes"), batch_size=4, cache_dir=str(tmp_path / "cache"))
    again.setup()
    assert isinstance(again.train_data.store.values, np.memmap)


def test_a_folder_of_scenes_is_split_by_run(town, tmp_path):
    for scene in generate_scenes(town, 8, 0, 0.5):
        write_scene(scene, tmp_path)
    write_map(town, tmp_path)
    data = DrivingDataModule(str(tmp_path), batch_size=4, cache_dir=str(tmp_path / "cache"), val_fraction=0.25)
    data.setup()
    train, val = ({name.split("_id_")[0] for name in side.names} for side in (data.train_data, data.val_data))
    assert (len(train), len(val)) == (6, 2)
    assert not train & val
    assert {name.startswith("augmap") for name in val} == {True, False}


def test_same_seed_same_data():
    first, second, other = (DrivingDataModule(generated_runs=4, generated_size=3, seed=s) for s in (0, 0, 1))
    for data in (first, second, other):
        data.setup()
    assert torch.equal(*(torch.tensor(d.train_data[0]["lanes"]) for d in (first, second)))
    assert first.train_data[0]["lanes"].shape != other.train_data[0]["lanes"].shape or not np.array_equal(
        first.train_data[0]["lanes"], other.train_data[0]["lanes"]
    )
    few, held_out = first.unseen_scenes()
    assert not {name.split("_id_")[0] for name in few.names} & {name.split("_id_")[0] for name in held_out.names}


def test_commands_from_town_to_submission(tmp_path, monkeypatch, capsys):
    import h5py

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    main(["driving", "town", "TOWN", "--size", "3"])
    main(["driving", "synthesize", "TOWN", "-o", "SCENES", "--runs", "4"])
    assert "mean speed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["driving", "synthesize", "TOWN", "-o", "SCENES", "--runs", "4"])
    assert "holds scenes already" in capsys.readouterr().err
    scene = sorted((tmp_path / "SCENES/train/data").glob("*.csv"))[0]
    main(["driving", "plot", str(scene), "-o", "scene.png"])
    assert (tmp_path / "scene.png").stat().st_size > 10_000
    test = tmp_path / "SCENES/test_obs/data"
    test.mkdir(parents=True)
    lines = scene.read_text().splitlines()
    for number in (7, 8):
        (test / f"{number}.csv").write_text("\n".join(lines[:21]))
    manifest = tmp_path / "tiny.yaml"
    state = __import__("zoo.papers.trajectory_mae", fromlist=["x"]).TrajectoryForecaster(width=24, depth=1).state_dict()
    from safetensors.torch import save_file

    save_file(state, tmp_path / "tiny.safetensors")
    manifest.write_text(
        "name: tiny\ntitle: t\npaper: trajectory_mae\nclass_path: zoo.papers.trajectory_mae.TrajectoryForecaster\n"
        "init_args: {width: 24, depth: 1}\nsource: {kind: file, filename: tiny.safetensors}\n"
    )
    main(["driving", "submit", str(manifest), "SCENES", "-o", "out.h5"])
    with h5py.File("out.h5") as file:
        sent = file["argoverse_forecasting"][:]
    assert sent.shape == (2 * 6 * 30, 4)
    assert set(sent[:, 0]) == {7, 8}
    assert sent[:180:30, 3].sum() == pytest.approx(1, abs=1e-5)
    last = np.array([float(value) for value in lines[20].split(",")[3:5]])
    assert np.hypot(*(sent[29:180:30, 1:3] - last).T).max() < 90


def test_of_few_drives_one_is_held_out(tmp_path):
    write_map(make_town(0), tmp_path / "map")
    report = synthesize(tmp_path / "map", tmp_path / "scenes", 4)  # a tenth of four is none
    held_out = list((tmp_path / "scenes/val/data").glob("*.csv"))
    assert len(held_out) == report.held_out > 0
    assert report.scenes - report.held_out == len(list((tmp_path / "scenes/train/data").glob("*.csv"))) > 0
    assert synthesize(tmp_path / "map", tmp_path / "none", 4, val_share=0).held_out == 0

"""End to end on released scenes: load, forecast, plot, score. `pytest --scenes DIR` takes a folder of CSVs (with
`map_files` in it, above it, or without a map); by default the released scenes among the golden cases are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from zoo.cli.app import main
from zoo.driving.audit import statistics
from zoo.driving.features import localise
from zoo.driving.mapless import RADII, arc_map, localise_without_map
from zoo.driving.maps import find_map_folder, read_maps
from zoo.driving.scenes import HISTORY, read_scene
from zoo.errors import ZooError
from zoo.papers.trajectory_mae import TrajectoryForecaster


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory) -> str:
    """A small untrained one: what is tested is the way from a file to a picture and a score."""
    torch.manual_seed(0)
    model = TrajectoryForecaster(width=24, depth=1, normalise=True)
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    path = tmp_path_factory.mktemp("model") / "forecaster.ckpt"
    torch.save(checkpoint, path)
    return str(path)


@pytest.fixture(scope="module")
def scenes(request, tmp_path_factory) -> list[Path]:
    given = request.config.getoption("--scenes")
    if given:
        return sorted(Path(given).rglob("*.csv"))
    folder = tmp_path_factory.mktemp("released")
    for path in sorted((Path(request.config.getoption("--golden")) / "trajectory_mae").glob("*.pt")):
        case = torch.load(path, weights_only=True)
        if "csv_text" in case:
            (folder / f"{path.stem}.csv").write_text(case["csv_text"])
    files = sorted(folder.glob("*.csv"))
    if not files:
        pytest.skip("no released scene: give a folder with --scenes")
    return files


def test_released_scenes_forecast_plot_and_score(scenes, forecaster, tmp_path, capsys):
    model = zoo.load(forecaster)
    for path in scenes:
        scene = read_scene(path)
        assert len(scene.agent.times) == 50
        try:
            options = []
            local = localise(scene, read_maps(find_map_folder(path))[scene.city])
        except ZooError:
            options, local = ["--no-map"], localise_without_map(scene)
        trajectories, probabilities = model.predict_local(local)
        assert trajectories.shape == (6, 30, 2)
        assert probabilities.sum() == pytest.approx(1, abs=1e-5)
        city = local.frame.to_city(trajectories)
        here = scene.agent.xy[HISTORY - 1]
        assert np.hypot(*(city[:, -1] - here).T).max() < 90
        picture = tmp_path / f"{path.stem}.png"
        main(["driving", "plot", str(path), "--model", forecaster, "-o", str(picture), *options])
        assert picture.stat().st_size > 10_000
    main(["driving", "score", forecaster, str(scenes[0].parent), *options])
    shown = capsys.readouterr().out
    assert "constant velocity" in shown
    assert f"{len(list(scenes[0].parent.glob('*.csv')))} scene" in shown


def test_released_scenes_keep_to_what_the_generator_is_built_after(scenes):
    found = statistics([read_scene(path) for path in scenes])
    assert 3 < found["speed"][0] < found["speed"][-1] < 10.5
    assert max(-found["acceleration"][0], found["acceleration"][-1]) < 2.5


def test_arcs_start_where_the_agent_is_and_have_their_radius():
    history = np.stack([np.arange(HISTORY) * 0.8, np.full(HISTORY, 3.0)], axis=1)
    lanes = arc_map("MIA", history).lanes
    assert len(lanes) == 2 + 2 * len(RADII)
    for lane in list(lanes.values())[1:]:
        np.testing.assert_allclose(lane.points[0], history[-1], atol=1e-9)
    for lane, radius in zip(list(lanes.values())[2:], np.repeat(RADII, 2), strict=True):
        a, b, c = lane.points[0], lane.points[4], lane.points[9]
        area = abs((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0]) / 2
        sides = np.prod([np.hypot(*(p - q)) for p, q in ((a, b), (b, c), (a, c))])
        assert sides / (4 * area) == pytest.approx(radius, rel=1e-6)


def test_no_map_is_said_and_arcs_are_asked_for(scenes, tmp_path):
    path = tmp_path / "deep" / "er" / "still" / "scene.csv"
    path.parent.mkdir(parents=True)
    path.write_text(scenes[0].read_text())
    with pytest.raises(SystemExit) as error:
        main(["driving", "plot", str(path), "-o", str(tmp_path / "x.png")])
    assert error.value.code == 2
    main(["driving", "plot", str(path), "-o", str(tmp_path / "x.png"), "--no-map"])
    assert (tmp_path / "x.png").stat().st_size > 5_000

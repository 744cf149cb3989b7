"""`zoo driving`: made-up towns, synthetic scenes, pictures and submissions of driving data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import ZooError

app = typer.Typer(
    help="Synthesise driving scenes, draw them, write forecasts for the benchmark server.",
    epilog="Example: zoo driving synthesize argoverse/map_files -o SCENES",
    no_args_is_help=True,
)
NoMapOption = Annotated[bool, typer.Option("--no-map", help="The map is not at hand: arcs ahead stand in for lanes.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]


@app.command("town", epilog="Example: zoo driving town TOWN --seed 3")
def town(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the map.")],
    seed: Annotated[int, typer.Option(help="Which town.")] = 0,
    size: Annotated[int, typer.Option(min=2, help="Crossings a side.")] = 4,
    city: Annotated[str, typer.Option(help="MIA or PIT, the names that Argoverse's reader knows.")] = "MIA",
) -> None:
    """Make up a town and write its vector map."""
    from zoo.driving.maps import check_city, write_map
    from zoo.driving.towns import make_town

    path = write_map(make_town(seed, size, city=check_city(city, "--city")), out)
    print(f"{path}\nDrive over it: zoo driving synthesize {out} -o SCENES")


@app.command("synthesize", epilog="Example: zoo driving synthesize argoverse/map_files -o SCENES --runs 10000 -j 8")
def synthesize(
    map_dir: Annotated[Path, typer.Argument(metavar="MAP_DIR", help="Folder of Argoverse 1 vector maps.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")],
    runs: Annotated[int, typer.Option(min=1, help="Drives of 25 s a city, each about eleven scenes.")] = 200,
    augmented: Annotated[float, typer.Option(min=0, max=1, help="Share of runs on augmented maps.")] = 0.5,
    val: Annotated[float, typer.Option(min=0, max=0.99, help="Share of runs held out.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Same seed, same files.")] = 0,
    processes: Annotated[int, typer.Option("-j", "--processes", min=1, help="Processes.")] = 1,
    force: ForceOption = False,
) -> None:
    """Augment maps, drive rule-based agents over them, write Argoverse-1-style CSVs and maps."""
    import numpy as np
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from zoo.driving.maps import read_maps
    from zoo.driving.synthesis import synthesize as work

    if not map_dir.is_dir():
        raise ZooError(f"There is no folder {map_dir}.")
    if output.is_dir() and any(output.rglob("*.csv")) and not force:
        raise ZooError(f"{output} holds scenes already: choose another folder, or add to them with --force.")
    console = Console(stderr=True)
    columns = (TextColumn("driving"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=runs * len(read_maps(map_dir)))
        report = work(
            map_dir,
            output,
            runs,
            seed=seed,
            augmented_share=augmented,
            val_share=val,
            processes=processes,
            progress=lambda count: bar.advance(task, count),
        )
    kinds = f"{report.augmented} of them on augmented maps, {report.held_out} held out in val"
    print(f"{output}: {report.scenes} scenes, {kinds}")
    if report.scenes and val and not report.held_out:
        print("Nothing is held out: the runs for val were thrown away. Drive more (--runs), or raise --val.")
    if report.scenes:
        low, middle, high = np.percentile(report.speeds, [5, 50, 95])
        turns = ", ".join(f"{name} {count / report.scenes:.0%}" for name, count in sorted(report.turns.items()))
        print(f"mean speed {middle:.1f} m/s (5 to 95 %: {low:.1f} to {high:.1f}); {turns}")
    if report.rejected:
        print("thrown away: " + ", ".join(f"{count} {reason}" for reason, count in report.rejected.most_common()))
    print(f"Pre-train on them: lightning run trajectory_mae/pretrain_combined --data.root {output}")


@app.command("plot", epilog="Example: zoo driving plot SCENES/train/data/dv10MIA_0_id_1_tr_5.0_ti_2.0.csv")
def plot(
    scene: Annotated[Path, typer.Argument(metavar="SCENE", help="A scene: .csv (Argoverse 1) or .parquet (2).")],
    map_dir: Annotated[Path | None, typer.Option("--map", help="Map folder; default: beside or above it.")] = None,
    model: Annotated[str | None, typer.Option(help="A forecaster: its six trajectories are drawn as well.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="PNG; default: SCENE.png here.")] = None,
    no_map: NoMapOption = False,
    force: ForceOption = False,
) -> None:
    """Draw a scene over its map; with --model, forecast it."""
    from zoo.driving.features import HISTORY, localise
    from zoo.driving.files import MapSource, read_any_scene
    from zoo.driving.mapless import localise_without_map
    from zoo.driving.plot import draw_scene

    target = output or Path(f"{scene.stem}.png")
    if target.exists() and not force:
        raise ZooError(f"{target} exists already: choose another name, or overwrite it with --force.")
    if not scene.is_file():
        raise ZooError(f"There is no scene {scene}.")
    read = read_any_scene(scene, need_future=False)
    local = localise_without_map(read) if no_map else localise(read, MapSource(map_dir).of(scene, read.city))
    forecast = None
    if model is not None:
        from zoo.loading import load

        forecaster = load(model)
        if not hasattr(forecaster, "predict_local"):
            raise ZooError(f"{model} is no forecaster.")
        forecast = forecaster.predict_local(local)
    import matplotlib

    matplotlib.use("Agg")
    draw_scene(local, forecast).savefig(target, dpi=150, bbox_inches="tight")
    truth = len(local.tracks[0].xy) > HISTORY
    count = len(local.tracks)
    users = f"{count} road user{'s' if count > 1 else ''}"
    lanes = "no map, arcs instead" if no_map else f"{len(local.lanes)} lanes"
    print(f"{target} ({lanes}, {users}{', with the truth' if truth else ''})")


@app.command("score", epilog="Example: zoo driving score RUN/forecaster.ckpt SCENES/val")
def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A forecaster: a name, checkpoint or run folder.")],
    scenes: Annotated[Path, typer.Argument(metavar="SCENES", help="A scene, or a folder of them, with their future.")],
    map_dir: Annotated[Path | None, typer.Option("--map", help="Map folder; default: beside or above them.")] = None,
    no_map: NoMapOption = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Scenes at once.")] = 64,
) -> None:
    """Score a forecaster as Argoverse does (K = 6, misses beyond 2 m), beside driving on at constant velocity."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from zoo.cli.driving_score import score_scenes

    if not scenes.exists():
        raise ZooError(f"There are no scenes at {scenes}.")
    count, found = score_scenes(model, scenes, map_dir, no_map, batch_size)
    table = Table(title=f"{count} scene{'s' if count > 1 else ''}{', without a map' if no_map else ''}",
                  box=box.SIMPLE_HEAD, title_justify="left")  # fmt: skip
    for column in ("", "minADE_6 (m)", "minFDE_6 (m)", "MR_6"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in found.items():
        table.add_row(name, f"{values['minADE']:.2f}", f"{values['minFDE']:.2f}", f"{values['MR']:.0%}")
    Console().print(table)


@app.command("submit", epilog="Example: zoo driving submit MODEL ARGOVERSE -o submission.h5")
def submit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A forecaster: a name, checkpoint or run folder.")],
    root: Annotated[Path, typer.Argument(metavar="ARGOVERSE", help="Folder with test_obs/data (and map_files).")],
    output: Annotated[Path, typer.Option("-o", "--output", help="HDF5 file.")] = Path("submission.h5"),
    split: Annotated[str, typer.Option(help="test or val.")] = "test",
    batch_size: Annotated[int, typer.Option(min=1, help="Scenes at once.")] = 64,
    force: ForceOption = False,
) -> None:
    """Forecast a whole split and write it in the format of the Argoverse 1 forecasting challenge."""
    from zoo.cli.driving_submit import write_submission

    if output.exists() and not force:
        raise ZooError(f"{output} exists already: choose another name, or overwrite it with --force.")
    if split not in ("test", "val"):
        raise ZooError(f"--split is test or val, not {split!r}.")
    print(write_submission(model, root, output, split, batch_size))

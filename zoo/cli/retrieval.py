"""`zoo retrieval`: how well a model's features find files of the same label, with a report."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.errors import ZooError


def retrieval(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A model, manifest, .ckpt or run folder.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Files in one subfolder a label.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for report.html, report.json, queries.csv.")],
    k: Annotated[
        list[int] | None, typer.Option("-k", min=1, help="Recall at how many; again for more. 1, 5, 10.")
    ] = None,
    pattern: Annotated[str, typer.Option(help="Which files, such as '*.png'.")] = "*",
    batch_size: Annotated[int, typer.Option(min=1, help="Files that go through the model at once.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be read.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Rank files by the similarity of their features: recall at k, mean average precision, nearest neighbours.

    Every file once is the query among all others; those of its subfolder are right. Works with every model that
    `zoo embed` takes: pictures, faces, shapes, MRI.
    """
    import numpy as np

    from zoo import loading
    from zoo.callbacks.report_page import Page
    from zoo.cli.embed import embed_files, expand
    from zoo.tasks.outcomes import intervals
    from zoo.tasks.retrieval import chance, draw_neighbours, neighbours, retrieval_outcome

    if not folder.is_dir():
        raise ZooError(f"There is no folder {folder}.")
    if (output / "report.html").exists() and not force:
        raise ZooError(f"{output} has a report already: choose another folder, or overwrite it with --force.")
    files = [file for file in expand([folder], pattern) if file.parent != folder]
    if len({_label(file, folder) for file in files}) < 2:
        raise ZooError(f"{folder} needs two subfolders or more with files, one a label.")
    model = loading.load(name)
    done, features, skipped = embed_files(model, files, batch_size=batch_size, device=device, skip_bad=skip_bad)
    paths = [Path(str(file)) for file in done]
    labels = [_label(path, folder) for path in paths]
    outcome = retrieval_outcome(features, labels, tuple(k or (1, 5, 10)))
    outcome.names = [str(path) for path in paths]
    found = intervals(outcome)
    guess = chance(labels)
    for key, interval in found.items():
        print(f"{key}\t{interval}")
    print(f"{len(paths)} files of {len(set(labels))} labels; recall@1 of a random neighbour {guess:.4g}")
    for reason in skipped:
        print(f"skipped: {reason}")
    page = Page(f"Retrieval with {name}")
    page.metrics(outcome, found, 0.95, chosen=False)
    facts = {"model": name, "files": f"{len(paths)} in {folder}", "labels": str(len(set(labels))),
             "features": str(features.shape[1]), "recall@1 of a random neighbour": f"{guess:.4g}"}  # fmt: skip
    page.facts("What was compared", facts)
    ranked = neighbours(features, 7)
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(10, len(paths))).astype(int)).tolist()
    with contextlib.suppress(OSError):  # no pictures
        page.figure("nearest neighbours: green has the query's label", draw_neighbours(paths, labels, ranked, chosen))
    output.mkdir(parents=True, exist_ok=True)
    with (output / "queries.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "nearest", *outcome.values])
        for n, path in enumerate(paths):
            scores = [round(float(values[n]), 5) for values in outcome.values.values()]
            writer.writerow([path, labels[n], paths[ranked[n, 0]], *scores])
    numbers = {"samples": outcome.count, "chance": guess, "metrics": {key: vars(i) for key, i in found.items()}}
    (output / "report.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    (output / "report.html").write_text(page.html(), encoding="utf-8")
    print(output / "report.html")


def _label(file: Path, folder: Path) -> str:
    return file.relative_to(folder).parts[0]

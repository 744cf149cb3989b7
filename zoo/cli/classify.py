"""Which of some names fits a shape. Used by `zoo classify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo import loading
from zoo.cli.tables import print_table
from zoo.errors import ZooError


def classify_files(
    name: str, files: list[Path], labels: str | None, *, top: int, z_up: bool, device: str, as_json: bool
) -> None:
    """Prints the `top` names of each file, or all of them as JSON. `labels` are names with commas between."""
    from zoo.cli.embed import expand, pick_device

    paths = expand(files)
    model = loading.load(name)
    if not hasattr(model, "classify"):
        raise ZooError(f"{name} is a {type(model).__name__}, which does not classify.")
    model = model.to(pick_device(device))
    options: dict[str, Any] = {"upright": True} if z_up else {}
    if labels is not None:
        options["labels"] = [label.strip() for label in labels.split(",") if label.strip()]
    elif not model.hparams.get("class_names"):
        raise ZooError(f"{name} needs names to choose from: --labels chair,mug,lamp.")
    ranked = {str(path): model.classify(str(path), **options) for path in paths}
    if as_json:
        print(json.dumps(ranked, indent=2, ensure_ascii=False))
        return
    rows = []
    for path, scores in ranked.items():
        for place, (label, score) in enumerate(list(scores.items())[:top]):
            rows.append({"file": path if place == 0 else "", "label": label, "score": f"{score:.3f}"})
    print_table(rows)

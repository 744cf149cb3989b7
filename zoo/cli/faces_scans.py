"""`zoo faces scans`: reconstructed faces against 3D scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import ZooError


def evaluate_scans(
    model: str, root: Path, output: Path, basis: Path | None, radius: float, batch_size: int, device: str
) -> dict[str, Any]:
    """Reconstructs every picture of every person, measures it against the person's scan, writes the report."""
    from datamodules.faces.meshes import read_basis
    from datamodules.faces.scans import load_scan, read_scans
    from zoo.cli.embed import embed_files
    from zoo.papers.face_representation import FaceTask
    from zoo.papers.face_representation.scans import scan_errors
    from zoo.tasks.start import start_model

    people = read_scans(root)
    network = start_model(model)
    if not isinstance(network, FaceTask) or network.hparams["task"] != "reconstruction3d":
        raise ZooError(
            f"{model} does not reconstruct faces: give a run of face_representation/benchmark_reconstruction3d."
        )
    vertices = network.outputs
    landmarks = np.arange(68) if basis is None else read_basis(basis).landmarks
    if landmarks.max() >= vertices:
        raise ZooError(f"The model has {vertices} vertices, fewer than the landmarks' numbers: is --basis the model's?")
    pictures = []
    for number, person in enumerate(people):
        _, meshes, _ = embed_files(network, person.images, batch_size=batch_size, device=device)
        points, normals = load_scan(person.scan)
        for mesh in meshes.reshape(len(meshes), vertices, 3).astype(float):
            found = scan_errors(mesh, landmarks, points, normals, person.landmarks, radius)
            pictures.append({"person": number, **{key: 100 * value for key, value in found.items()}})
    means = {key: float(np.mean([row[key] for row in pictures])) for key in ("point", "plane")}
    report = {"people": len(people), "pictures": len(pictures), "radius": radius, **means, "each": pictures}
    output.mkdir(parents=True, exist_ok=True)
    (output / "scans.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _draw(pictures, output / "scans.png")
    return report


def _draw(pictures: list[dict[str, Any]], path: Path) -> None:
    """The share of pictures below each error."""
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(4.5, 3))
    for key, name in (("point", "to the nearest point"), ("plane", "to its tangent plane")):
        errors = np.sort([row[key] for row in pictures])
        axis.step(errors, np.arange(1, len(errors) + 1) / len(errors), where="post", label=name)
    axis.set(xlabel="mean distance (% of the outer eye corners' distance)", ylabel="share of pictures", ylim=(0, 1.02))
    axis.set_xlim(left=0)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)

"""The five tasks on rendered faces, and one attribute: exact labels, people that training and test do not share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.faces.anatomy import ACTION_UNITS, mesh_triangles, num_vertices
from datamodules.faces.renderer import FaceRenderer, Rendered

TASKS = ("recognition", "landmarks", "action_units", "valence_arousal", "reconstruction3d", "attributes")
_TRAIN, _TEST = 1_000_003, 2_000_003  # added to the seed: people that pre-training has not seen either


class RenderedTask(Dataset):
    """One task's samples, dicts of `image` uint8 (3, S, S), `target`, `subject`, and `scale` where errors have one."""

    def __init__(self, faces: list[Rendered], task: str, first_subject: int) -> None:
        self.faces, self.task, self.first = faces, task, first_subject

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> dict[str, Any]:
        face = self.faces[index]
        size = face.image.shape[0]
        eyes = float(np.linalg.norm(face.landmarks[36] - face.landmarks[45])) / size
        target, scale = {
            "recognition": (np.int64(face.identity), None),
            "landmarks": ((face.landmarks + 0.5) / size, eyes),
            "action_units": (face.units, None),
            "valence_arousal": (face.affect, None),
            "reconstruction3d": (face.vertices, float(np.linalg.norm(face.vertices[36] - face.vertices[45]))),
            "attributes": (np.int64(face.units[ACTION_UNITS.index(12)] > 1), None),  # smiling or not
        }[self.task]
        whole = isinstance(target, np.int64)
        sample = {
            "image": torch.from_numpy(face.image).permute(2, 0, 1).contiguous(),
            "target": torch.tensor(int(target)) if whole else torch.as_tensor(target, dtype=torch.float32),
            "subject": self.first + face.identity,
        }
        return sample if scale is None else {**sample, "scale": scale}

    def mean_target(self, chosen: np.ndarray) -> np.ndarray:
        """The mean of the chosen pictures' labels."""
        return np.mean([np.asarray(self[int(index)]["target"]) for index in chosen], axis=0)

    @property
    def subjects(self) -> list[int]:
        """Who is in each picture."""
        return [self.first + face.identity for face in self.faces]


def rendered_tasks(
    size: int = 64, train: int = 1000, test: int = 500, identities: int = 50, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Task name to its data: `train`, `test`, `outputs` (of the head), `options` (of the head), `subjects` of training.

    Training shows `identities` people, the test half as many others; neither are those of pre-training with this seed.
    """
    test_identities = max(2, identities // 2)
    people = FaceRenderer(size, identities, seed + _TRAIN), FaceRenderer(size, test_identities, seed + _TEST)
    known = [people[0](index) for index in range(train)]
    unseen = [people[1](index) for index in range(test)]
    outputs = {"recognition": identities, "landmarks": 68, "action_units": len(ACTION_UNITS), "valence_arousal": 2,
               "reconstruction3d": num_vertices(), "attributes": 2}  # fmt: skip
    tasks: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        data = RenderedTask(known, task, 0)
        tasks[task] = {
            "train": data,
            "test": RenderedTask(unseen, task, identities),
            "outputs": outputs[task],
            "options": {},
            "subjects": data.subjects,
        }
    tasks["landmarks"]["options"] = {"width": 32}
    tasks["recognition"]["options"] = {"embed_dim": 128, "kind": "cos", "scale": 30.0, "margin": 0.2, "grid": 4}
    tasks["reconstruction3d"]["options"] = {"triangles": torch.from_numpy(mesh_triangles()), "channels": 4, "grid": 4}
    tasks["action_units"]["options"] = {"grid": 4}
    tasks["valence_arousal"]["options"] = {"grid": 4}
    return tasks

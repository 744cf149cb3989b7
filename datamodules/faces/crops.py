"""Annotated pictures cut out around their faces, or whatever else was marked in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datamodules.faces import meshes
from datamodules.faces.layouts import Annotations
from datamodules.faces.sources import decode
from zoo.errors import ZooError
from zoo.pixels import to_rgb


class FaceCrops(Dataset):
    """Samples of annotated pictures: the face is cut out with a margin and brought to (size, size).

    Args:
        annotations: what is in the pictures. task: how targets are meant. size: side in pixels.
        margin: share of the box's longer side that is added on every side; the cut is square.
        scale: (n,) what errors are divided by, in pixels of the pictures (landmarks) or units of the mesh.
    """

    def __init__(
        self, annotations: Annotations, task: str, size: int, margin: float = 0.15, scale: np.ndarray | None = None
    ) -> None:
        self.annotations, self.task, self.size, self.margin, self.scale = annotations, task, size, margin, scale

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def subjects(self) -> list[int] | None:
        """Who is in each picture, if the data set says."""
        return None if self.annotations.subjects is None else self.annotations.subjects.tolist()

    def picture(self, index: int) -> Image.Image:
        """The whole picture in RGB. Raises `ZooError` that names it."""
        source = self.annotations.images[index]
        try:
            if isinstance(source, np.ndarray):
                return Image.fromarray(source.astype(np.uint8)).convert("RGB")
            # Boxes, landmarks and meshes are in pixels as stored; any other picture is turned upright.
            whole = self.annotations.boxes is None and self.task not in ("landmarks", "reconstruction3d")
            return to_rgb(decode(Path(source).read_bytes(), exif=whole))
        except (OSError, ValueError, SyntaxError) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).split(":")[0]
            raise ZooError(
                f"Cannot read the picture {source if isinstance(source, Path) else index} ({reason})."
            ) from error

    def mean_target(self, chosen: np.ndarray) -> np.ndarray:
        """The mean of the chosen pictures' labels."""
        targets = self.annotations.targets
        return targets.mean(chosen) if isinstance(targets, meshes.Meshes) else targets[chosen].mean(axis=0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, boxes = self.picture(index), self.annotations.boxes
        left, top, side = 0, 0, max(image.size)
        if boxes is not None:
            x0, y0, x1, y1 = boxes[index]
            # Whole pixels, so that the cut and its landmarks agree; what lies outside the picture is black.
            side = round(max(x1 - x0, y1 - y0) * (1 + 2 * self.margin))
            left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
        if side < 2:
            raise ZooError(f"The face box of picture {index} has no size.")
        cut = image.crop((left, top, left + side, top + side))
        cut = cut.resize((self.size, self.size), Image.Resampling.BILINEAR)
        target = self.annotations.targets[index]
        sample: dict[str, Any] = {"image": torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()}
        if self.task in ("recognition", "attributes"):
            sample["target"] = torch.tensor(int(target))
        elif self.task == "landmarks":
            sample["target"] = torch.as_tensor((target + 0.5 - [left, top]) / side, dtype=torch.float32)
        else:
            sample["target"] = torch.as_tensor(target, dtype=torch.float32)
        if self.scale is not None:
            sample["scale"] = float(self.scale[index]) / (side if self.task == "landmarks" else 1.0)
        if self.annotations.subsets:
            sample["subsets"] = torch.tensor([bool(flags[index]) for flags in self.annotations.subsets.values()])
        if self.annotations.subjects is not None:
            sample["subject"] = int(self.annotations.subjects[index])
        return sample

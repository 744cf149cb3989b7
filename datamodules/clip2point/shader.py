"""A small shader: pictures of meshes for pre-training, where no rendered ones come with the data.

The surface is sampled finer than the pixels, a z-buffer keeps the nearest sample, and Lambert's law lights it from
beside the camera. White background, perspective camera at distance 2 - the geometry of the paper's rendered ShapeNet.
"""

from __future__ import annotations

import numpy as np
import torch

from zoo.nn.cameras import ViewSet, camera_rotation, perspective_scale
from zoo.nn.points import Shape, face_areas, sample_surface

DISTANCE, FIELD_OF_VIEW = 2.0, 60.0
_SAMPLES = 12  # times the pixels of a picture: about a dozen for each pixel that shows the object
_AMBIENT = 0.35


def shade(shape: Shape, views: ViewSet, image_size: int, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures of a mesh from each view: (V, image_size, image_size, 3) uint8.

    Args:
        shape: a mesh; it is centred and scaled to the unit sphere as its sampled cloud would be.
        colour: (3,) of the surface, 0 to 1.
        rng: draws the surface samples.
    """
    points, faces = sample_surface(shape, _SAMPLES * image_size**2, rng)
    points = points - points.mean(axis=0)
    points = torch.from_numpy(points / np.linalg.norm(points, axis=1).max()).float()
    normals = torch.from_numpy(face_areas(shape)[1][faces]).float()

    rotation = camera_rotation(*views.tensors())  # (V, 3, 3)
    seen = points @ rotation
    z = seen[..., 2] + DISTANCE
    scale = perspective_scale(FIELD_OF_VIEW) / z
    column = ((1 - seen[..., 0] * scale) * image_size / 2).long()
    row = ((1 - seen[..., 1] * scale) * image_size / 2).long()
    inside = (column >= 0) & (column < image_size) & (row >= 0) & (row < image_size)
    pixel = torch.where(inside, row * image_size + column, image_size**2)

    # Depth in the upper half of the key, sample in the lower: the smallest key is the nearest sample.
    key = z.contiguous().view(torch.int32).long() << 32 | torch.arange(len(points))
    nearest = torch.full((len(views), image_size**2 + 1), torch.iinfo(torch.int64).max)
    nearest = nearest.scatter_reduce_(1, pixel, key, "amin")[:, :-1]
    empty = nearest == torch.iinfo(torch.int64).max
    sample = (nearest & 0xFFFFFFFF).masked_fill(empty, 0)

    # The light stands a little to the left of and above the camera; the meshes' faces have no reliable inside.
    light = torch.nn.functional.normalize(torch.tensor([0.4, 0.5, -1.0]), dim=0)
    lambert = (normals @ rotation @ light).abs().gather(1, sample)
    brightness = _AMBIENT + (1 - _AMBIENT) * lambert
    picture = brightness[..., None] * torch.from_numpy(np.asarray(colour, dtype=np.float32))
    picture = torch.where(empty[..., None], 1.0, picture).clamp(0, 1)
    return (picture * 255).round().byte().view(len(views), image_size, image_size, 3).numpy()

"""Draws the schematic faces of `anatomy`: lit, before a background, with exact landmarks. Plainly synthetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from datamodules.faces.anatomy import Face, Person, make_face, make_person, rotation
from zoo.seeding import derive_seed

_SUPERSAMPLE = 3
_PERSON, _PICTURE = 20, 21


@dataclass(frozen=True)
class Rendered:
    """A picture and what is known about it.

    Attributes:
        image: (S, S, 3) uint8. landmarks: (68, 2) pixels, x and y, the centre of the first pixel at 0.
        vertices: (V, 3) of the mesh in the camera's frame, in units of half a head (x right, y down, z to the camera).
        units: (10,) 0 to 5. affect: (2,) valence and arousal. identity: number of the person. pose: (3,) radians.
    """

    image: np.ndarray
    landmarks: np.ndarray
    vertices: np.ndarray
    units: np.ndarray
    affect: np.ndarray
    identity: int
    pose: np.ndarray


class FaceRenderer:
    """Picture `index` of a made-up collection; the same for the same arguments, in any order.

    Args:
        size: side of the pictures in pixels.
        identities: how many people; picture i shows person i modulo this.
        seed: of people and pictures.
        max_yaw: how far heads turn to the sides, in radians.
    """

    def __init__(self, size: int = 64, identities: int = 200, seed: int = 0, max_yaw: float = 0.4) -> None:
        self.size, self.identities, self.seed, self.max_yaw = size, identities, seed, max_yaw

    def __call__(self, index: int) -> Rendered:
        identity = index % self.identities
        rng = np.random.default_rng(derive_seed(self.seed, _PICTURE, index))
        person = self._person(identity)
        face = make_face(person, rng, self.max_yaw)
        scale = self.size * rng.uniform(0.38, 0.43)  # cropped as face data sets are: the head fills the picture
        centre = self.size * (0.5 + rng.normal(0, 0.015, 2)) - [0, 0.05 * self.size]
        image = draw(face, person, scale, centre, self.size, rng)
        landmarks = face.turned[:68, :2] * scale + centre
        return Rendered(image, landmarks, face.turned, face.units, face.affect, identity, face.pose)

    def _person(self, identity: int) -> Person:
        return _cached_person(self.seed, identity)


@lru_cache(maxsize=4096)
def _cached_person(seed: int, identity: int) -> Person:
    return make_person(np.random.default_rng(derive_seed(seed, _PERSON, identity)))


def draw(
    face: Face, person: Person, scale: float, centre: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """(size, size, 3) uint8: flat colours first, then light, then the camera's noise."""
    big = size * _SUPERSAMPLE
    at = _Canvas(scale * _SUPERSAMPLE, (np.asarray(centre) + 0.5) * _SUPERSAMPLE)
    turn = rotation(face.pose)
    skin, hair, iris, lips, dress = _colours(person.colour)
    picture = _background(big, rng)
    pen = ImageDraw.Draw(picture)
    head = _head_outline(face, turn)
    length = person.colour[10]
    back = [[1.16 * np.cos(a), -0.1 - 1.22 * np.sin(a), -0.25] for a in np.linspace(-0.1, np.pi + 0.1, 24)]
    if length > 0.45:
        back = [[1.14, 0.4 + length, -0.3], *back, [-1.14, 0.4 + length, -0.3]]
    pen.polygon(
        at(
            [
                [-1.5, 3, -0.4],
                [-1.15, 1.75, -0.4],
                [-0.5, 1.45, -0.3],
                [0.5, 1.45, -0.3],
                [1.15, 1.75, -0.4],
                [1.5, 3, -0.4],
            ]
        ),
        fill=dress,
    )
    pen.polygon(
        at(np.array([[-0.42, 0.8, -0.2], [0.42, 0.8, -0.2], [0.45, 1.6, -0.3], [-0.45, 1.6, -0.3]]) @ turn.T),
        fill=_darker(skin, 0.78),
    )
    pen.polygon(at(np.array(back) @ turn.T), fill=hair)
    for side in (-1, 1):
        ear = np.array(
            [[side * (0.96 + 0.1 * np.cos(a)), -0.05 + 0.2 * np.sin(a), 0.0] for a in np.linspace(0, 2 * np.pi, 14)]
        )
        pen.polygon(at(ear @ turn.T), fill=_darker(skin, 0.9))
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon(at(head), fill=255)
    pen.polygon(at(head), fill=skin)
    _features(pen, at, face, person, skin, iris, lips, hair)
    fringe = person.colour[11]
    if fringe > 0.25:
        low = -0.86 + 0.34 * fringe
        part = (person.colour[9] - 0.5) * 1.4
        front = [
            [x, low - 0.25 * np.exp(-(((x - part) / 0.35) ** 2)), 0.62 * (1 - x * x) + 0.1]
            for x in np.linspace(-0.97, 0.97, 13)
        ]
        top = [[1.02 * np.cos(a), -0.3 - 0.98 * np.sin(a), 0.1] for a in np.linspace(0, np.pi, 16)]
        pen.polygon(at(np.array(front + top) @ turn.T), fill=hair)
    return _develop(picture, mask, at, turn, size, rng)


class _Canvas:
    """Points of the turned face to pixels of the large picture."""

    def __init__(self, scale: float, centre: np.ndarray) -> None:
        self.scale, self.centre = scale, centre

    def __call__(self, points: object) -> list[tuple[float, float]]:
        xy = np.asarray(points, dtype=float)[:, :2] * self.scale + self.centre
        return [(float(x), float(y)) for x, y in xy]


def _head_outline(face: Face, turn: np.ndarray) -> np.ndarray:
    """Silhouette of the turned head: the convex hull of jaw, brow of the skull and ellipsoid."""
    from scipy.spatial import ConvexHull

    angle = np.linspace(0.02, np.pi - 0.02, 14)
    skull = np.stack([0.98 * np.cos(angle), -0.02 - 1.08 * np.sin(angle), 0.1 + 0 * angle], axis=1)
    front = np.stack([0.7 * np.cos(angle), -0.1 - 0.8 * np.sin(angle), 0.6 + 0 * angle], axis=1)
    points = np.concatenate([face.turned[:17], np.concatenate([skull, front]) @ turn.T])[:, :2]
    return points[ConvexHull(points).vertices]


def _features(pen: ImageDraw.ImageDraw, at: _Canvas, face: Face, person: Person, skin, iris, lips, hair) -> None:
    p, unit = face.turned, at.scale
    line = max(1, round(0.035 * unit))
    # nose: a lit bridge, a shaded side, nostrils
    side = -1 if face.pose[0] > 0 else 1
    ridge = p[[27, 28, 29, 30]]
    wing = p[31 if side < 0 else 35]
    pen.polygon(at([*ridge, wing, (p[27] + wing * [0.35, 0.35, 1]) / 1.35]), fill=_darker(skin, 0.88))
    pen.line(at(p[[31, 32, 33, 34, 35]]), fill=_darker(skin, 0.62), width=line, joint="curve")
    for nostril in (p[31:33].mean(axis=0), p[34:36].mean(axis=0)):
        _dot(pen, at, nostril, 0.035, _darker(skin, 0.45))
    # eyes
    for eye in (p[36:42], p[42:48]):
        centre = eye.mean(axis=0)
        pen.polygon(at(centre + (eye - centre) * [1.25, 1.5, 1]), fill=_darker(skin, 0.86))
        height = np.ptp(eye[:, 1])
        if height > 0.035:
            pen.polygon(at(eye), fill=(240, 238, 234))
            radius = min(0.075, 0.62 * height + 0.01)
            _dot(pen, at, centre, radius, iris)
            _dot(pen, at, centre, radius * 0.5, (15, 12, 12))
        pen.line(at(eye[[0, 1, 2, 3]]), fill=_darker(hair, 0.5), width=line, joint="curve")
        pen.line(at(eye[[3, 4, 5, 0]]), fill=_darker(skin, 0.6), width=max(1, line // 2), joint="curve")
    # brows: thickness belongs to the person
    thick = 0.05 + 0.07 * person.colour[8]
    for brow in (p[17:22], p[22:27]):
        pen.line(at(brow), fill=_darker(hair, 0.8), width=max(1, round(thick * unit)), joint="curve")
    # mouth: outer lips, then what the inner lips leave open
    pen.polygon(at(p[48:60]), fill=lips)
    gap = np.ptp(p[[61, 62, 63, 65, 66, 67], 1])
    if gap > 0.06:
        pen.polygon(at(p[60:68]), fill=(70, 22, 26))
        teeth = np.concatenate([p[[60, 61, 62, 63, 64]], p[[63, 62, 61]] + [0, min(0.07, gap * 0.5), 0]])
        pen.polygon(at(teeth), fill=(236, 234, 226))
    else:
        pen.line(at(p[[60, 61, 62, 63, 64]]), fill=_darker(lips, 0.5), width=line, joint="curve")
    # folds that go with expression
    smile, frown = face.units[5] / 5, face.units[2] / 5
    for wing, corner in ((p[31], p[48]), (p[35], p[54])):
        if smile > 0.15:
            out = np.sign(corner[0] - p[33, 0]) * 0.12
            bend = np.array([[0.5 * out, 0, 0], [out, -0.02, 0], [0.7 * out, 0.02, 0]])
            fold = np.stack([wing, (wing + corner) / 2, corner]) + bend
            pen.line(at(fold), fill=_darker(skin, 1 - 0.35 * smile), width=line, joint="curve")
    if frown > 0.15:
        for x in (-0.04, 0.04):
            pen.line(
                at(p[27] + np.array([[x, -0.24, 0], [x, -0.1, 0]])), fill=_darker(skin, 1 - 0.35 * frown), width=line
            )


def _dot(pen: ImageDraw.ImageDraw, at: _Canvas, point: np.ndarray, radius: float, fill: tuple[int, ...]) -> None:
    (x, y), r = at([point])[0], radius * at.scale
    pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def _colours(c: np.ndarray) -> tuple[tuple[int, ...], ...]:
    light, dark = np.array([244, 208, 178]), np.array([92, 58, 40])
    skin = light + (dark - light) * c[0] ** 1.2 + (c[1] - 0.5) * np.array([10, 0, -16])
    hairs = np.array([[28, 22, 20], [74, 48, 30], [140, 96, 54], [206, 172, 110], [128, 62, 36], [150, 148, 146]])
    hair = hairs[int(c[2] * 5.999)] * (0.8 + 0.4 * c[3])
    irises = np.array([[72, 46, 28], [96, 122, 82], [92, 130, 168], [40, 28, 22]])
    iris = irises[int(c[4] * 3.999)]
    lips = skin * [0.92, 0.6, 0.6] * (0.75 + 0.35 * c[5]) + [26, 0, 6]
    dress = 40 + 190 * np.array([c[6], c[7], (c[6] * 3.7 + c[7] * 2.3) % 1])
    return tuple(tuple(int(v) for v in np.clip(colour, 0, 255)) for colour in (skin, hair, iris, lips, dress))


def _darker(colour: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(int(v * share) for v in colour)


def _background(big: int, rng: np.random.Generator) -> Image.Image:
    """A muted gradient with a few shapes: something that says nothing about the face."""
    room = rng.uniform(60, 200, 3) * 0.3 + rng.uniform(60, 200) * 0.7
    corners = (room + rng.normal(0, 18, (2, 2, 3))).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(corners).resize((big, big), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 3))):
        x, y = rng.uniform(0, big, 2)
        w, h = rng.uniform(0.1, 0.5, 2) * big
        colour = tuple(int(v) for v in (room + rng.normal(0, 25, 3)).clip(0, 255))
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        (pen.rectangle if rng.random() < 0.5 else pen.ellipse)(box, fill=colour)
    return picture


def _develop(
    picture: Image.Image, mask: Image.Image, at: _Canvas, turn: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Light on the head, the room's colour, sharpness, noise; down to (size, size, 3)."""
    small = picture.resize((size, size), Image.Resampling.BOX)
    cover = np.asarray(mask.resize((size, size), Image.Resampling.BOX), dtype=np.float32)[..., None] / 255
    if rng.random() < 0.15:
        small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.012 * size)))
    pixels = np.asarray(small, dtype=np.float32)
    scale, centre = at.scale / _SUPERSAMPLE, at.centre / _SUPERSAMPLE
    yy, xx = np.mgrid[:size, :size]
    nx, ny = (xx + 0.5 - centre[0]) / (1.05 * scale), (yy + 0.5 - centre[1] - 0.08 * scale) / (1.3 * scale)
    nz = np.sqrt(np.clip(1 - nx * nx - ny * ny, 0.03, None))
    light = rng.normal(0, 0.45, 3) + np.array([0, -0.35, 1.0])
    light /= np.linalg.norm(light)
    lit = np.clip(nx * light[0] + ny * light[1] + nz * light[2], 0, None)
    ambient = rng.uniform(0.45, 0.8)
    shade = ambient + (1.15 - ambient) * lit
    pixels = pixels * (1 + cover * (shade[..., None] - 1))
    pixels *= rng.uniform(0.75, 1.15) * (1 + rng.normal(0, 0.06, 3))
    pixels += rng.normal(0, rng.uniform(0.5, 4), pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)

"""What is worn on and around the head: hair, hats and scarves, glasses, a body. Plain meshes in
head space."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np

from synthetic.camera import Pose
from synthetic.head import load_head
from synthetic.noise import combine, grey, layered_noise, patterned, random_colour, smooth_noise

_ATLAS_SIZE = (576, 288)  # rows, columns
_REGIONS = {  # x, y, width, height in the atlas, px; the skin's own picture comes first
    "skin": (0, 0, 288, 256), "eye": (0, 256, 64, 64), "teeth": (64, 256, 16, 16),
    "tongue": (80, 256, 16, 16), "frame": (96, 256, 16, 16), "lens": (112, 256, 64, 64),
    "hair": (0, 320, 144, 128), "hat": (144, 320, 144, 128), "cloth": (0, 448, 288, 128),
}  # fmt: skip
_COLUMNS, _ROWS = 40, 16  # grid of hair and hats: around the head, from the crown to the tip
_STYLES = {  # shares of men and of women
    "bald": (0.1, 0.01), "short": (0.55, 0.08), "medium": (0.15, 0.18), "long": (0.07, 0.43),
    "tied": (0.03, 0.2), "afro": (0.1, 0.1),
}  # fmt: skip
_SKULL = np.float32([0, 0.62, -0.75])
_BEHIND_GLASSES = np.float32([0, 0, -1])
_BODY = (  # rings from the neck down: height, half width, half depth, forward shift
    (-1.75, 0.72, 0.72, 0.0), (-2.0, 0.85, 0.8, 0.02), (-2.25, 1.35, 0.9, 0.0),
    (-2.5, 2.1, 0.95, 0.0), (-3.0, 2.7, 1.05, 0.05), (-4.2, 2.9, 1.2, 0.1), (-7.0, 2.9, 1.3, 0.1),
)  # fmt: skip
_IRISES = (((35, 55, 85), 0.3), ((20, 30, 45), 0.45), ((150, 120, 80), 0.15), ((80, 120, 90), 0.1))
_HATS = {"cap": 0.34, "brim": 0.2, "beanie": 0.16, "scarf": 0.16, "helmet": 0.14}


def atlas_uv(region: str, uv: np.ndarray) -> np.ndarray:
    """Positions 0-1 inside a region to atlas px, kept clear of the neighbours."""
    x, y, width, height = _REGIONS[region]
    size = np.float32([width - 3, height - 3])
    return (np.float32([x, y]) + 1 + np.clip(uv, 0, 1) * size).astype(np.float32)


@dataclass(frozen=True)
class Piece:
    """A mesh to render with the head: vertices (V, 3), triangles (T, 3), uv (V, 2) atlas px, shade
    (V,) 0-1 how much light reaches a vertex; inside: (3,) a point in the piece that its normals
    point away from; pivot: (3,) the point of the head that stays in place where the piece turns by
    itself."""

    vertices: np.ndarray
    triangles: np.ndarray
    uv: np.ndarray
    shade: np.ndarray
    inside: np.ndarray
    pivot: np.ndarray = field(default_factory=lambda: np.zeros(3, np.float32))


@dataclass(frozen=True)
class Scalp:
    """Where hair and hats sit: for every direction of a grid around the skull, three outer vertices
    and weights."""

    angle: np.ndarray  # (C,) around the vertical axis, 0 in front, -pi to pi
    polar: np.ndarray  # (P,) from the crown
    vertices: np.ndarray  # (C, P, 3)
    weights: np.ndarray  # (C, P, 3)


@lru_cache(maxsize=1)
def _scalp() -> Scalp:
    """The skin (without ears and neck) nearest to each direction from the skull's middle."""
    head = load_head()
    x, y, z = head.base.T
    ear = (np.abs(x) > 1.0) & (y < 0.65) & (y > -0.6) & (z < -0.55) & (z > -1.6)
    used = np.unique(head.triangles[head.part == 0])
    used = used[(head.openness[used] > 0.3) & ~ear[used] & (y[used] > -1.3)]
    direction = head.base[used] - _SKULL
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    angle = np.linspace(-np.pi, np.pi, _COLUMNS + 1, dtype=np.float32)
    polar = np.radians(np.linspace(0, 150, 51, dtype=np.float32))
    a, p = np.meshgrid(angle, polar, indexing="ij")
    # (C, P, 3)
    wanted = np.stack((np.sin(a) * np.sin(p), np.cos(p), np.cos(a) * np.sin(p)), axis=-1)
    cosine = wanted @ direction.T
    nearest = np.argpartition(-cosine, 3, axis=-1)[..., :3]
    distance = 1 - np.take_along_axis(cosine, nearest, axis=-1)
    weights = 1 / (distance + 2e-3)
    weights /= weights.sum(-1, keepdims=True)

    return Scalp(angle, polar, used[nearest], weights.astype(np.float32))


def _grid_triangles(columns: int, rows: int) -> np.ndarray:
    index = np.arange(columns * rows).reshape(columns, rows)
    a, b, c, d = (
        i.ravel() for i in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:])
    )
    return np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))


def _sheet(
    region: str,
    points: np.ndarray,
    down: np.ndarray,
    inside: np.ndarray,
    *,
    across: np.ndarray | None = None,
    shade: float | np.ndarray = 1.0,
    pivot: tuple[float, float, float] = (0, 0, 0),
) -> Piece:
    """A piece from a grid of points (C, R, 3), with its place in a region's picture, 0-1: across,
    (C, 1), evenly where not given, and down, up to (C, R).
    """
    columns, rows = points.shape[:2]
    across = np.linspace(0, 1, columns)[:, None] if across is None else across
    uv = np.stack(np.broadcast_arrays(across, down), -1)

    return Piece(
        points.reshape(-1, 3).astype(np.float32),
        _grid_triangles(columns, rows),
        atlas_uv(region, uv).reshape(-1, 2),
        np.broadcast_to(np.float32(shade), (columns, rows)).reshape(-1),
        inside,
        np.float32(pivot),
    )


def _shell(
    scalp: Scalp, vertices: np.ndarray, end: np.ndarray, thickness: np.ndarray, hang: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A surface over the skull, columns × rows × 3, and the row's share of the way down (columns,
    rows).

    end: (C,) polar angle where it leaves the skull; thickness: (C, R) distance from it; hang: (C,)
    length below that.
    """
    points = np.einsum("cpk,cpkd->cpd", scalp.weights, vertices[scalp.vertices])  # (C, P, 3)
    arc = end * 1.2
    # length along the strand
    share = np.linspace(0, 1, _ROWS, dtype=np.float32)[None] * (arc + hang)[:, None]
    polar = np.minimum(share / 1.2, end[:, None])
    position = np.clip(polar / scalp.polar[1], 0, len(scalp.polar) - 1.001)
    low = position.astype(int)
    column = np.arange(len(end))[:, None]
    fraction = (position - low)[..., None]
    surface = points[column, low] * (1 - fraction) + points[column, low + 1] * fraction
    centre = points[0, 0] - [0, 1.35, 0]
    outward = surface - centre.astype(np.float32)
    outward /= np.linalg.norm(outward, axis=-1, keepdims=True)
    surface = surface + outward * thickness[..., None]
    surface[..., 1] -= np.maximum(share - arc[:, None], 0)

    return surface.astype(np.float32), share / (arc + hang)[:, None]


def _around(scalp: Scalp, controls: list[tuple[float, float]]) -> np.ndarray:
    """Interpolate (degrees from the front, value) to the grid's columns, the same on both sides."""
    degrees, values = zip(*controls, strict=True)
    return np.interp(np.degrees(np.abs(scalp.angle)), degrees, values).astype(np.float32)


def dress(
    vertices: np.ndarray,
    male: float,
    hair: np.ndarray,
    eyes: list[tuple[np.ndarray, float]],
    rng: np.random.Generator,
    *,
    cover: bool,
) -> tuple[list[Piece], dict[str, np.ndarray], Glasses | None]:
    """Hair, hat and glasses by chance: (pieces, atlas pictures, glasses); nothing dark over the
    eyes unless `cover`."""
    hat, pieces = rng.random() < 0.2, []
    piece, picture = draw_hair(_scalp(), vertices, male, hair, rng)
    pictures = {"hair": picture}
    if piece is not None and not (hat and rng.random() < 0.3):
        pieces.append(piece)
    if hat:
        worn, pictures["hat"] = draw_hat(_scalp(), vertices, rng)
        pieces += worn

    if rng.random() < 0.24:
        glasses = draw_glasses(np.stack([centre for centre, _ in eyes]), eyes[0][1], rng)
        if cover or glasses.opacity < 0.5:
            pictures |= {"frame": glasses.frame_colour, "lens": glasses.lens_picture}
            return pieces + glasses.frame, pictures, glasses

    return pieces, pictures, None


def build_atlas(pictures: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """All pictures in one, (576, 288, 3) float32 BGR, with eyes, teeth and tongue added."""
    teeth, tongue = np.float32([195, 220, 230]) * rng.uniform(0.75, 1.15), (80, 80, 170)
    atlas = np.zeros((*_ATLAS_SIZE, 3), np.float32)
    pictures = {"eye": _eye_picture(rng), "teeth": teeth, "tongue": tongue, **pictures}

    for name, picture in pictures.items():
        x, y, width, height = _REGIONS[name]
        atlas[y : y + height, x : x + width] = picture

    return atlas


def draw_hair(
    scalp: Scalp, vertices: np.ndarray, male: float, colour: np.ndarray, rng: np.random.Generator
) -> tuple[Piece | None, np.ndarray]:
    """Hair as a shell over the skull: (piece, its picture); no piece when bald."""
    shares = [of_men if male > 0.5 else of_women for of_men, of_women in _STYLES.values()]
    style = str(rng.choice(list(_STYLES), p=shares))
    picture = _hair_picture(colour, rng)
    if style == "bald":
        return None, picture

    end = _draw_hairline(scalp, style, rng)
    hang = np.zeros(len(end), np.float32)

    if style in ("medium", "long"):
        start = rng.uniform(52, 80)
        total = rng.uniform(0.5, 1.3) if style == "medium" else rng.uniform(1.3, 3.0)
        hang = total * np.clip((np.degrees(np.abs(scalp.angle)) - start) / 12, 0, 1)

    ragged = rng.normal(0, rng.uniform(0.01, 0.05), len(end)).astype(np.float32)
    ragged[-1] = ragged[0]
    end = np.clip(end + ragged, 0.3, 2.55)
    hang = np.where(hang > 0, np.maximum(hang + ragged * 3, 0.05), 0)

    volume = {
        "short": rng.uniform(0.03, 0.18),
        "tied": rng.uniform(0.03, 0.08),
        "afro": rng.uniform(0.25, 0.9),
    }.get(style, rng.uniform(0.08, 0.25))

    bumps = smooth_noise(rng, (_COLUMNS + 1, _ROWS), (rng.uniform(5, 16), 5))
    bumps[-1] = bumps[0]
    taper = np.minimum(1, (1 - np.linspace(0, 1, _ROWS, dtype=np.float32)) * 5)[None]
    loose = (hang > 0)[:, None]
    thickness = volume * (1 + 0.2 * bumps) * np.where(loose, 1.0, np.maximum(taper, 0.15)) + 0.02

    surface, share = _shell(scalp, vertices, end, thickness, hang)
    if style == "long" and rng.random() < 0.5:  # waves
        surface[..., 0] += 0.06 * np.sin(share * rng.uniform(10, 25)) * loose

    shade = np.clip(0.75 + 0.25 * share + 0.15 * bumps, 0.3, 1.0)

    return _sheet("hair", surface, share, _SKULL, shade=shade), picture


def _draw_hairline(scalp: Scalp, style: str, rng: np.random.Generator) -> np.ndarray:
    """Polar angle (C,) at which hair leaves the skull, with a fringe at times."""
    front = np.clip(rng.normal(64, 5), 45, 74)
    fringe = rng.random() < (0.3 if style in ("short", "medium", "long") else 0.05)
    lopsided = rng.normal(0, 3)
    temple = rng.uniform(72, 90)
    line = [(0, front), (35, front + 2), (62, temple), (85, rng.uniform(88, 104)), (105, 100)]
    line += [(125, rng.uniform(108, 122)), (180, rng.uniform(122, 140))]
    end = np.radians(_around(scalp, line))
    end += np.radians(lopsided) * np.sin(scalp.angle) * (np.abs(scalp.angle) < 1.2)

    if fringe:
        length = rng.uniform(78, 94)
        parting = rng.uniform(-0.9, 0.9) if rng.random() < 0.5 else -9.0
        curtain = np.clip(np.abs(scalp.angle - parting) / 0.35, 0, 1)
        covered = np.abs(scalp.angle) < 1.1
        end = np.where(covered, np.maximum(end, end + (np.radians(length) - end) * curtain), end)

    return end


def _hair_picture(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, _, width, height = _REGIONS["hair"]
    strands = smooth_noise(rng, (height, width), (3, width / 1.5)) * 0.6
    strands += smooth_noise(rng, (height, width), (4, 20)) * 0.5
    if rng.random() < 0.25:  # curls
        strands += smooth_noise(rng, (height, width), (50, 60)) * 0.8

    picture = combine((strands,), (colour * rng.uniform(0.1, 0.35),), colour)

    if rng.random() < 0.15:  # highlights
        light = np.clip(smooth_noise(rng, (height, width), (2, 30)), 0, 1)
        picture += grey(light * np.float32(rng.uniform(20, 80)))

    return picture


def draw_hat(
    scalp: Scalp, vertices: np.ndarray, rng: np.random.Generator
) -> tuple[list[Piece], np.ndarray]:
    """A cap, a brimmed hat, a woollen hat, a hood or scarf, or a helmet: (pieces, their
    picture)."""
    kind = str(rng.choice(list(_HATS), p=list(_HATS.values())))
    _, _, width, height = _REGIONS["hat"]
    picture = patterned(rng, (height, width))
    front = rng.uniform(58, 76)

    side, back, hang, volume = {
        "cap": (82, rng.uniform(90, 105), 0.0, rng.uniform(0.12, 0.25)),
        "brim": (82, 92, 0.0, rng.uniform(0.15, 0.45)),
        "beanie": (rng.uniform(85, 98), rng.uniform(95, 115), 0.0, rng.uniform(0.1, 0.25)),
        "scarf": (90, 100, 2.4, rng.uniform(0.08, 0.2)),
        "helmet": (118, 125, 0.0, rng.uniform(0.25, 0.45)),
    }[kind]

    knee = {"scarf": 52, "helmet": 62}.get(kind, 90)
    line = [(0, front), (knee * 0.7, front + 2), (knee, side), (120, side + 4), (180, back)]
    end = np.radians(_around(scalp, line))
    end += np.radians(rng.normal(0, 3)) * np.sin(scalp.angle)
    lengths = hang * np.clip((np.degrees(np.abs(scalp.angle)) - rng.uniform(45, 62)) / 10, 0, 1)
    thickness = np.full((len(end), _ROWS), volume, np.float32)

    if kind == "scarf":
        thickness *= 1 + 0.25 * smooth_noise(rng, thickness.shape, (12, 4))
        thickness[-1] = thickness[0]

    end, lengths = end.astype(np.float32), lengths.astype(np.float32)
    surface, share = _shell(scalp, vertices, end, thickness, lengths)
    pieces = [_sheet("hat", surface, share, _SKULL)]
    if kind in ("cap", "brim"):
        pieces.append(_brim(scalp.angle, surface[:, -1], kind == "cap", rng))

    return pieces, picture


def _brim(angle: np.ndarray, rim: np.ndarray, cap: bool, rng: np.random.Generator) -> Piece:
    """The brim of a hat that ends at rim (C, 3): all around, or in front only (a cap, at times worn
    backwards)."""
    degrees = np.degrees(np.abs(angle))
    used = degrees < (62 if cap else 181)
    if cap and rng.random() < 0.1:
        used = degrees > 120

    reach = rng.uniform(0.5, 1.1) if cap else rng.uniform(0.3, 1.2)
    angle, rim = angle[used], rim[used]
    shape = np.cos(np.clip(angle * 1.35, -1.57, 1.57))[:, None] if cap else np.ones((len(angle), 1))
    outward = np.stack((np.sin(angle), np.zeros(len(angle)), np.cos(angle)), axis=1) * shape * reach
    outward[:, 1] = rng.uniform(-0.35, 0.05) * np.abs(shape[:, 0])
    steps = np.linspace(0, 1, 5, dtype=np.float32)[None, :, None]
    brim = rim[:, None] + outward[:, None] * steps  # (C', 5, 3)

    return _sheet("hat", brim, steps[..., 0], np.float32([0, -3, 0]), shade=0.9)


@dataclass(frozen=True)
class Glasses:
    """frame: opaque pieces; lenses: a piece drawn over the picture with `opacity` (0 for clear
    glass)."""

    frame: list[Piece]
    lenses: Piece
    opacity: float
    frame_colour: np.ndarray
    lens_picture: np.ndarray


def draw_glasses(centres: np.ndarray, radius: float, rng: np.random.Generator) -> Glasses:
    """Spectacles or sunglasses in front of eyeballs at centres (2, 3): a tube around each lens, a
    bridge, temples."""
    half = np.array([rng.uniform(0.31, 0.44), rng.uniform(0.19, 0.36)])
    exponent = rng.uniform(0.45, 1.0)
    width = rng.uniform(0.015, 0.07)
    theta = np.linspace(0, 2 * np.pi, 25)
    circle = np.stack((np.cos(theta), np.sin(theta)), 1)
    outline = np.sign(circle) * np.abs(circle) ** exponent * half
    depth = centres[:, 2].mean() + radius + rng.uniform(0.1, 0.25)
    drop = rng.uniform(-0.12, 0.04)
    middle = [np.array([c[0] * rng.uniform(1.0, 1.1), c[1] + drop, depth]) for c in centres]
    frame = _spectacle_frame(outline, half, width, middle)

    # Lenses: fans around their middles.
    rim = len(outline)
    sides = [*zip((-1, 1), middle, strict=True)]
    fans = [np.concatenate((m[None], _bent(outline, m, side))) for side, m in sides]
    fan = np.stack((np.zeros(rim - 1, int), np.arange(1, rim), np.arange(2, rim + 1)), 1)
    lens_uv = np.concatenate(([[0.5, 0.5]], 0.5 + 0.5 * outline / half * [1, -1]))

    lenses = Piece(
        np.concatenate(fans).astype(np.float32),
        np.concatenate((fan, fan + rim + 1)),
        np.tile(atlas_uv("lens", lens_uv), (2, 1)),
        shade=np.ones(2 * rim + 2, np.float32),
        inside=_BEHIND_GLASSES,
    )

    dark = rng.random() < 0.42
    shade = np.linspace(rng.uniform(0, 60), rng.uniform(0, 130), 64, dtype=np.float32)
    picture = np.tile(shade[:, None, None], (1, 64, 3)) + random_colour(rng) * rng.uniform(0, 0.35)
    glare = np.clip(layered_noise(rng, (64, 64), (2, 5)), 0, 2)
    picture += glare[..., None] * rng.uniform(0, 50)

    if dark:
        opacity = rng.uniform(0.6, 1.0)
    else:
        opacity = rng.uniform(0.0, 0.3) if rng.random() < 0.5 else 0.0
        picture += 120

    colour = random_colour(rng) * (0.3 if rng.random() < 0.7 else 1.0)

    return Glasses(frame, lenses, float(opacity), colour, picture.astype(np.float32))


def _spectacle_frame(
    outline: np.ndarray, half: np.ndarray, width: float, middle: list[np.ndarray]
) -> list[Piece]:
    """Strips of half a `width` to either side: around each lens, to the ears, over the nose."""

    def strip(low: np.ndarray, high: np.ndarray) -> Piece:
        points = np.stack((low, high), 1)
        plain = np.full(points.shape[:2], 0.5)  # one colour
        return _sheet("frame", points, plain, _BEHIND_GLASSES, across=plain)

    strips, edge = [], np.array([0, width, 0])

    for side, m in zip((-1, 1), middle, strict=True):
        rims = [_bent(outline * scale, m, side) for scale in (1 - width / half, 1 + width / half)]
        hinge = m + [side * half[0] * 1.05, half[1] * 0.35, -0.25 * half[0]]
        ear = np.array([side * 1.16, m[1] + 0.06, -0.95])
        temple = np.stack((hinge, hinge * 0.5 + ear * 0.5 + [side * 0.08, 0, 0], ear))
        strips += [strip(*rims), strip(temple - edge, temple + edge)]

    ends = [middle[0] + [half[0], 0.05, 0], middle[1] + [-half[0], 0.05, 0]]
    bridge = np.stack((ends[0], (ends[0] + ends[1]) / 2 + [0, 0.04, 0.08], ends[1]))

    return [*strips, strip(bridge - edge, bridge + edge)]


def _bent(flat: np.ndarray, middle: np.ndarray, side: int) -> np.ndarray:
    """Flat points (P, 2) around a lens's middle, its outer half bent backwards around the face: (P,
    3)."""
    outer = np.maximum(0, side * flat[:, 0])
    return middle + np.stack((flat[:, 0], flat[:, 1], -0.6 * outer**2), axis=1)


def draw_body(pose: Pose, rng: np.random.Generator) -> tuple[Piece, np.ndarray, np.ndarray]:
    """Neck opening and shoulders: (piece, its own rotation to camera space, the cloth's
    picture)."""
    rings = np.float32(_BODY)
    rings[:, 0] += rng.uniform(-0.1, 0.35)
    rings[2:, 1] *= rng.uniform(0.75, 1.15)
    rings[0, 1:3] *= rng.uniform(1.0, 1.5)
    theta = np.linspace(-np.pi, np.pi, 25, dtype=np.float32)[:, None]

    x, z = np.sin(theta) * rings[:, 1], np.cos(theta) * rings[:, 2] + rings[:, 3] - 1.15
    points = np.stack((x, np.broadcast_to(rings[:, 0], x.shape), z), -1)
    points[..., 1] += 0.12 * np.cos(theta * 2) * (rings[:, 0] > -2.4)  # a collar is lower in front
    down, across = np.linspace(0, 1, 7), theta / (2 * np.pi) + 0.5
    inside, pivot = np.float32([0, -3, -1.15]), (0, -1.5, -1.0)
    piece = _sheet("cloth", points, down, inside, across=across, pivot=pivot)

    _, _, width, height = _REGIONS["cloth"]
    yaw, roll = pose.yaw * rng.uniform(0, 0.8), pose.roll * rng.uniform(0, 0.5)
    turned = Pose(yaw, pose.pitch * 0.2, roll, pose.distance)

    return piece, turned.rotation, patterned(rng, (height, width))


def _eye_picture(rng: np.random.Generator) -> np.ndarray:
    """The eyeball from the front, (64, 64, 3) BGR: white, iris, pupil, and a catch-light at
    times."""
    picture = np.empty((64, 64, 3), np.float32)
    picture[:] = np.float32([200, 205, 215]) * rng.uniform(0.75, 1.12)

    def disc(centre: tuple[int, int], radius: int, colour: list[float]) -> None:
        cv2.circle(picture, centre, radius, colour, -1, cv2.LINE_AA, 3)  # in eighths of a pixel

    colours, shares = zip(*_IRISES, strict=True)
    colour = np.float32(colours[rng.choice(len(colours), p=shares)]) * rng.uniform(0.5, 1.3)
    size, middle = rng.uniform(12.5, 16), (256, 256)
    disc(middle, round(size * 8), [float(c) * 0.55 for c in colour])
    disc(middle, round(size * 6.8), [float(c) for c in colour])
    disc(middle, round(size * rng.uniform(2.8, 4.2)), [12.0] * 3)

    if rng.random() < 0.6:
        spot = 256 + rng.uniform(-80, 80, 2)
        disc((int(spot[0]), int(spot[1])), 24, [250.0] * 3)

    return cv2.GaussianBlur(picture, (3, 3), 0)

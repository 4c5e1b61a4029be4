"""One head in front of a camera: all that is mesh, drawn at random, dressed, lit and rendered."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from synthetic.camera import CANVAS, Pose, View, centred_view, draw_box, draw_pose, project
from synthetic.dressing import Piece, atlas_uv, build_atlas, draw_body, dress
from synthetic.head import (
    LOWER_TEETH,
    TONGUE,
    UPPER_TEETH,
    Head,
    SurfacePoints,
    load_head,
    vertex_normals,
    visible_landmarks,
)
from synthetic.light import Light, draw_light, shade_head, shade_piece
from synthetic.raster import Fragments, rasterise
from synthetic.shape import draw_expression, draw_person
from synthetic.skin import Skin, draw_brows, paint_skin, to_texture

_HEAD, _BODY = 0, 1  # owners of pixels; what is worn follows


@dataclass(frozen=True)
class Rendering:
    """picture: (size, size, 3) float32 BGR, black where nothing is; mask: (size, size) bool;
    landmarks: (98, 2) px; box: (left, top, width, height) px, float; hidden: (98,) bool, covered by
    something worn; facts: large pose, expression, illumination, make-up; tone: (3,) BGR of the skin
    under its light; skin: (3,) BGR of the bare skin."""

    picture: np.ndarray
    mask: np.ndarray
    landmarks: np.ndarray
    box: tuple[float, float, float, float]
    hidden: np.ndarray
    facts: tuple[bool, bool, bool, bool]
    tone: np.ndarray
    skin: np.ndarray


class _Canvas:
    """The picture in the making, flat: colours, depth, and the number of the piece each pixel shows
    (-1: none)."""

    def __init__(self, size: int) -> None:
        self.shape = size, size
        self.picture = np.zeros((size * size, 3), np.float32)
        self.depth = np.full(size * size, -np.inf, np.float32)
        self.owner = np.full(size * size, -1, np.int32)

    def draw(self, pieces: list[tuple[np.ndarray, ...]], atlas: np.ndarray) -> None:
        """Render (points on canvas, triangles, uv, shading) of the head, the body and what is worn,
        in one pass."""
        points, triangles, uv, shading = zip(*pieces, strict=True)
        first = np.cumsum([0, *map(len, points[:-1])])
        mesh = np.concatenate([part + start for part, start in zip(triangles, first, strict=True)])
        owner = np.repeat(np.arange(len(pieces), dtype=np.int32), [*map(len, triangles)])
        seen = rasterise(np.concatenate(points), mesh, self.shape, owner == _HEAD)
        values = np.concatenate((np.concatenate(uv), np.concatenate(shading)), axis=1)
        self.picture[seen.pixel] = _colour(seen, mesh, values, atlas)
        self.depth[seen.pixel] = seen.depth
        self.owner[seen.pixel] = owner.take(seen.triangle)

    def draw_glass(self, piece: tuple[np.ndarray, ...], atlas: np.ndarray, opacity: float) -> None:
        """Render one piece over the picture, where it is nearer, letting some of the picture
        through."""
        points, triangles, uv, shading = piece
        over = rasterise(points, triangles, self.shape, np.zeros(len(triangles), bool))
        near = over.depth > self.depth[over.pixel]
        over = Fragments(*(values[near] for values in vars(over).values()))
        glass = _colour(over, triangles, np.concatenate((uv, shading), axis=1), atlas)
        self.picture[over.pixel] += (glass - self.picture[over.pixel]) * opacity
        if opacity > 0.5:
            self.owner[over.pixel] = _BODY + 1


def render_head(
    rng: np.random.Generator, without: frozenset[str] = frozenset(), *, size: int = CANVAS
) -> Rendering:
    """Draw and render one random head, its face box centred on a canvas of size x size pixels; the
    same head in all sizes."""
    head = load_head()
    person, expression = draw_person(head, rng), draw_expression(head, rng)
    pose, light = draw_pose(rng, "pose" not in without), draw_light(rng, "lighting" not in without)
    brows = draw_brows(head, rng)
    skin = paint_skin(head, person, brows, rng)
    vertices = person.vertices + expression.offsets
    eyes = [head.eye(vertices, side) for side in (0, 1)]
    rotation = pose.rotation

    # Projection at unit scale gives the points, the points the box, and the box the view.
    pupils = np.stack([centre + expression.gaze * radius for centre, radius in eyes])
    landmarks = _flat_landmarks(head, vertices, brows, pupils, pose)
    box = draw_box(landmarks, rng)
    view = centred_view(pose, box, size)
    landmarks = view.on_canvas(landmarks)

    cover = "occluders" not in without
    pieces, pictures, glasses = dress(vertices, person.male, skin.hair, eyes, rng, cover=cover)
    body, body_turn, pictures["cloth"] = draw_body(pose, rng)
    atlas = build_atlas({"skin": skin.texture, **pictures}, rng)
    surface = _grow_beard(head, vertices, skin, rng)
    shading = shade_head(head, surface, light, rotation, skin.shine)
    uv = _head_uv(head, vertices, eyes, expression.gaze)
    canvas = _Canvas(size)
    whole = (view.see(surface @ rotation.T), head.triangles, uv, shading)
    worn = [_ready(piece, rotation, view, light) for piece in pieces]
    canvas.draw([whole, _ready(body, body_turn, view, light), *worn], atlas)
    if glasses is not None and glasses.opacity > 0.02:
        canvas.draw_glass(_ready(glasses.lenses, rotation, view, light), atlas, glasses.opacity)

    _expose(canvas, light)
    cell = np.rint(landmarks).astype(int).clip(0, size - 1)

    return Rendering(
        picture=canvas.picture.reshape(size, size, 3),
        mask=(canvas.owner >= 0).reshape(size, size),
        landmarks=landmarks,
        box=(*view.on_canvas(np.array(box[:2])).tolist(), box[2] * view.scale, box[3] * view.scale),
        hidden=canvas.owner[cell[:, 1] * size + cell[:, 0]] > _BODY,
        facts=(pose.large, expression.strong, light.remarkable, skin.makeup),
        tone=np.clip(skin.tone * (light.ambient.mean(0) + 0.5 * light.colours.sum(0)), 0, 255),
        skin=skin.tone,
    )


def _flat_landmarks(
    head: Head, vertices: np.ndarray, brows: SurfacePoints, pupils: np.ndarray, pose: Pose
) -> np.ndarray:
    """The landmarks (98, 2) of a posed head, at unit scale."""
    rotation = pose.rotation
    flat = project(vertices @ rotation.T, pose.distance)[:, :2].astype(np.float64)
    pupils = project(pupils @ rotation.T, pose.distance)[:, :2]

    return visible_landmarks(head, flat, brows, pupils, rotation[:2, 1] * [1, -1])


def _expose(canvas: _Canvas, light: Light) -> None:
    """Half of an automatic exposure: dark and bright faces move towards the middle, on a
    logarithmic scale."""
    face = (canvas.owner == _HEAD).astype(np.uint8)
    if face.any():
        means = cv2.mean(np.minimum(canvas.picture, 255).reshape(-1, 1, 3), face[:, None])
        brightness = max(sum(means[:3]) / 3, 4.0)
        canvas.picture *= (115.0 / brightness) ** 0.55 * light.exposure**0.5


def _ready(piece: Piece, rotation: np.ndarray, view: View, light: Light) -> tuple[np.ndarray, ...]:
    """A piece as _Canvas.draw() takes it. The body's vertices come with a rotation of their own."""
    camera = piece.vertices @ rotation.T + view.pose.rotation @ piece.pivot - rotation @ piece.pivot
    return view.see(camera), piece.triangles, piece.uv, shade_piece(piece, light, rotation)


def _grow_beard(
    head: Head, vertices: np.ndarray, skin: Skin, rng: np.random.Generator
) -> np.ndarray:
    """The head's surface with a full beard standing off it; the landmarks stay on the skin."""
    if not skin.beard.any():
        return vertices

    x, y = np.rint(to_texture(head.skin_uv)).astype(int).T
    height, width = skin.beard.shape
    beard = skin.beard[y.clip(0, height - 1), x.clip(0, width - 1)]
    length = beard * (head.openness > 0.3) * rng.uniform(0, 0.1)
    grown = vertices + vertex_normals(vertices, head.triangles) * length[:, None]

    return grown.astype(np.float32)


def _head_uv(head: Head, vertices: np.ndarray, eyes: list, gaze: np.ndarray) -> np.ndarray:
    """Atlas px of the head's vertices: the painted skin, the eye pictures turned to the gaze, plain
    teeth."""
    uv = np.clip(to_texture(head.skin_uv), 0.5, [286.5, 254.5]).astype(np.float32)
    across = np.float32([gaze[2], 0, -gaze[0]]) / np.hypot(gaze[0], gaze[2])
    upward = np.cross(gaze, across)

    for side, (centre, radius) in enumerate(eyes):
        ball = head.eyes[side]
        direction = (vertices[ball] - centre) / radius
        x, y = 0.5 + 0.45 * direction @ across, 0.5 - 0.45 * direction @ upward
        uv[ball] = atlas_uv("eye", np.stack((x, y), 1))

    for part, region in ((UPPER_TEETH, "teeth"), (LOWER_TEETH, "teeth"), (TONGUE, "tongue")):
        uv[head.vertices_of(part)] = atlas_uv(region, np.float32([0.5, 0.5]))

    return uv


def _colour(
    fragments: Fragments, triangles: np.ndarray, values: np.ndarray, atlas: np.ndarray
) -> np.ndarray:
    """BGR of every fragment, (F, 3), from vertex values (V, 6): atlas px, light factors,
    highlight."""
    values = fragments.interpolate(triangles, values)
    columns = 512  # cv2.remap wants a picture of limited height
    padded = np.zeros((-(-max(len(values), 1) // columns) * columns, 2), np.float32)
    padded[: len(values)] = values[:, :2]
    albedo = cv2.remap(atlas, padded.reshape(-1, columns, 2), None, cv2.INTER_LINEAR)

    return albedo.reshape(-1, 3)[: len(values)] * values[:, 2:5] + values[:, 5:6]

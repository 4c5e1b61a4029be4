"""What the page shows: faces and attention weights as SVG, sharp at every size, no scripts."""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from html import escape

import cv2
import numpy as np

from dataset.landmarks import LandmarkScheme
from prediction.outputs import contour_colours

SET_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")  # of Okabe and Ito
PICTURE_SIDE = 720  # px; larger pictures are shrunk for the page
_CHART = (136, 112)  # width and height in the SVG's own units
_PLOT = (20, 26, 135, 96)  # left, top, right, bottom of the axes


def picture_svg(
    image: np.ndarray, boxes: Sequence[Sequence[int]], *, chosen: int, drawable: bool
) -> str:
    """The whole picture with its numbered face boxes."""
    height, width = image.shape[:2]
    unit = max(width, height) / 100
    marks = []

    for index, (left, top, right, bottom) in enumerate(boxes):
        state = "box chosen" if index == chosen else "box"
        marks.append(
            f'<rect class="{state}" x="{left}" y="{top}" width="{right - left + 1}" '
            f'height="{bottom - top + 1}"/>'
        )
        if len(boxes) > 1:
            place = f'x="{left + unit}" y="{top + 5 * unit}" font-size="{5 * unit:.1f}"'
            marks.append(f'<text class="number" {place}>{index + 1}</text>')

    marks.append('<rect class="box rubber" hidden="hidden"/>')
    shown = _embedded(image, (0, 0, width, height))
    kind = "picture drawable" if drawable else "picture"

    return (
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="the picture, {len(boxes)} face boxes">{shown}{"".join(marks)}</svg>'
    )


def face_svg(
    image: np.ndarray,
    box: Sequence[int],
    landmarks: np.ndarray,
    *,
    learnt: np.ndarray,
    scheme: LandmarkScheme,
    contours: Collection[str],
) -> str:
    """A face close up with its landmarks, and where they lie with the learnt attention.

    Args:
        image: (H, W, 3) uint8, BGR.
        box: the face's left, top, right, bottom, image px.
        landmarks, learnt: (P, 2) image px each.
        scheme: the contours of the P points.
        contours: names of those that are drawn.
    """
    left, top, right, bottom = box
    side = 1.5 * max(right - left + 1, bottom - top + 1)
    x, y = (left + right + 1 - side) / 2, (top + bottom + 1 - side) / 2
    parts = [f'<rect class="outside" x="{x}" y="{y}" width="{side}" height="{side}"/>']
    parts.append(_embedded(image, (x, y, x + side, y + side)))

    # a pixel's centre has whole numbers here and halves in SVG
    points, before = (np.asarray(values, np.float64) + 0.5 for values in (landmarks, learnt))
    radius = side / 170
    parts.append(f'<g stroke-width="{side / 400:.3f}">')

    for contour, (blue, green, red) in zip(
        scheme.contours, contour_colours(len(scheme.contours)), strict=True
    ):
        if contour.name not in contours:
            continue

        own = list(contour.points)
        if len(own) > 1:
            line = " ".join(f"{px:.2f},{py:.2f}" for px, py in points[own])
            shape = "polygon" if contour.closed else "polyline"
            colour = f"rgb({red},{green},{blue})"
            parts.append(f'<{shape} points="{line}" fill="none" stroke="{colour}"/>')

        parts += [_moved(before[i], points[i], radius) for i in own]
        dots = [
            f'<circle class="landmark" data-point="{i}" cx="{points[i, 0]:.2f}" '
            f'cy="{points[i, 1]:.2f}" r="{radius:.2f}"/>'
            for i in own
        ]
        parts.append(f'<g fill="rgb({red},{green},{blue})" class="dots">{"".join(dots)}</g>')

    return (
        f'<svg class="face" viewBox="{x} {y} {side} {side}" role="img" '
        f'aria-label="the face with its landmarks">{"".join(parts)}</g></svg>'
    )


def _moved(before: np.ndarray, after: np.ndarray, radius: float) -> str:
    """A line from where a landmark was, if it can be told from where it is."""
    if np.linalg.norm(after - before) < radius / 4:
        return ""

    (x0, y0), (x1, y1) = before, after

    return (
        f'<line class="moved" x1="{x0:.2f}" y1="{y0:.2f}" x2="{x1:.2f}" y2="{y1:.2f}"/>'
        f'<circle class="before" cx="{x0:.2f}" cy="{y0:.2f}" r="{0.7 * radius:.2f}"/>'
    )


def _embedded(image: np.ndarray, edges: Sequence[float]) -> str:
    """The part of the image within left, top, right, bottom (exclusive) as an SVG element."""
    height, width = image.shape[:2]
    left, top = (max(0, int(np.floor(edge))) for edge in edges[:2])
    right, bottom = min(width, int(np.ceil(edges[2]))), min(height, int(np.ceil(edges[3])))
    part = image[top:bottom, left:right]
    if not part.size:
        return ""

    scale = min(1.0, PICTURE_SIDE / max(part.shape[:2]))
    if scale < 1:
        size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)

    written = cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 88])[1]
    data = base64.b64encode(written.tobytes()).decode()

    return (
        f'<image x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
        f'preserveAspectRatio="none" href="data:image/jpeg;base64,{data}"/>'
    )


def attention_svg(module: str, used: np.ndarray, learnt: np.ndarray) -> str:
    """A bar a set and group: the weights used, (G, K), and a tick where the learnt ones are."""
    groups, sets = used.shape
    left, top, right, bottom = _PLOT
    cluster = (right - left) / groups
    step = 0.86 * cluster / sets
    parts = [_axes(groups), f'<text class="name" x="{left}" y="9">{escape(module)}</text>']

    for g, k in np.ndindex(groups, sets):
        x = left + g * cluster + 0.07 * cluster + k * step
        weight, before = float(used[g, k]), float(learnt[g, k])
        y, tick = (bottom - value * (bottom - top) for value in (weight, before))
        colour = SET_COLOURS[k % len(SET_COLOURS)]
        parts.append(
            f'<rect class="bar" data-group="{g + 1}" data-set="{k + 1}" data-weight="{weight:.4f}" '
            f'x="{x:.1f}" y="{y:.1f}" width="{0.86 * step:.1f}" height="{bottom - y:.1f}" '
            f'fill="{colour}"><title>group {g + 1}, set {k + 1}: {weight:.3f}, '
            f"as learnt {before:.3f}</title></rect>"
            f'<line class="learnt" x1="{x - 0.02 * step:.1f}" x2="{x + 0.88 * step:.1f}" '
            f'y1="{tick:.1f}" y2="{tick:.1f}"/>'
        )
        if groups * sets <= 8:
            middle = x + 0.43 * step
            parts.append(
                f'<text x="{middle:.1f}" y="{y - 3:.1f}" class="value">{weight:.2f}</text>'
            )

    width, height = _CHART
    name = escape(module)

    return (
        f'<svg class="attention" data-module="{name}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="attention weights of {name}">{"".join(parts)}</svg>'
    )


def _axes(groups: int) -> str:
    left, top, right, bottom = _PLOT
    parts = []

    for value in (0, 0.5, 1):
        y = bottom - value * (bottom - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="scale" x="{left - 3}" y="{y + 3}">{value:g}</text>')

    for g in range(groups if groups > 1 else 0):
        x = left + (g + 0.5) * (right - left) / groups
        parts.append(f'<text class="value" x="{x:.1f}" y="{bottom + 12}">group {g + 1}</text>')

    return "".join(parts)


def legend_html(sets: int) -> str:
    """Which colour is which set."""
    keys = [
        f'<span><i style="background:{SET_COLOURS[k % len(SET_COLOURS)]}"></i>set {k + 1}</span>'
        for k in range(sets)
    ]

    return f'<p class="legend">{"".join(keys)}<span><b></b>as learnt</span></p>'

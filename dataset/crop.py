"""The one face-patch function, used to prepare a data set and to predict, with the way back to
image pixels.

A patch is twice as large as the squared face box and 256 pixels wide; the network sees its central
128 pixels, which are the bare box, or the box grown by a scale. Coordinates are (x, y); integers
are pixel centres. "Patch px" are pixels of the 256 patch, "crop px" are patch px minus
`CROP_OFFSET`, "image px" are pixels of the picture the box was given in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from utils.files import UserError

PATCH_SIZE = 256
CROP_SIZE = 128
CROP_OFFSET = 64
RESAMPLINGS = ("nearest", "area")
Box = tuple[int, int, int, int]  # left, top, right, bottom; image px, edges inclusive
# px; the patch of a larger box would take gigabytes, and such a box is a slip in practice
MAX_BOX_SIDE = 10_000
BOX_SCALES = (0.5, 3.0)  # smallest and largest scale of a box


@dataclass(frozen=True)
class PatchFrame:
    """Where a patch lies in its image: origin and side in image px, the rule it is resampled by,
    and the degrees by which the square is turned clockwise about its centre.
    """

    left: int
    top: int
    side: int
    resample: str
    angle: float = 0.0

    # With "nearest", patch pixel i shows about image pixel floor(i * side / 256), yet the released
    # landmarks are scaled plainly about 0; that is kept, since published lists and numbers use it.
    # "area" keeps pixel centres aligned.

    def to_patch(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) from image px to patch px, float64."""
        centre = self._centre()
        origin = np.array([self.left, self.top], dtype=np.float64)
        upright = self._turned(np.asarray(points, dtype=np.float64), -self.angle)
        offset = upright - origin + centre

        # the product first, as released, so that lists are equal to the last digit
        return offset * PATCH_SIZE / self.side - centre

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) from patch px to image px, float64; the inverse of `to_patch`."""
        centre = self._centre()
        origin = np.array([self.left, self.top], dtype=np.float64)
        points = np.asarray(points, dtype=np.float64)
        upright = (points + centre) * (self.side / PATCH_SIZE) - centre + origin

        return self._turned(upright, self.angle)

    def turn(self, angle: float) -> np.ndarray:
        """(2, 3) float64, image px -> image px: clockwise by `angle` degrees about the square's
        centre.
        """
        cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        rotation = np.array([[cos, -sin], [sin, cos]])  # clockwise, since y points down
        centre = np.array([self.left, self.top]) + (self.side - 1) / 2

        return np.column_stack([rotation, centre - rotation @ centre])

    def _turned(self, points: np.ndarray, angle: float) -> np.ndarray:
        if not angle:
            return points

        matrix = self.turn(angle)

        return points @ matrix[:, :2].T + matrix[:, 2]

    def _centre(self) -> float:
        return 0.5 if self.resample == "area" else 0.0


def patch_frame(
    box: Box, resample: str = "nearest", scale: float = 1.0, *, angle: float = 0.0
) -> PatchFrame:
    """The frame of the patch around `box` = (left, top, right, bottom), integer image px, edges
    inclusive.

    The box is made square by growing its shorter side, then even; the square grows about its centre
    to `scale` times its side, rounded to an even number, is doubled about its centre, and turned
    about it, clockwise by `angle` degrees.
    """
    if resample not in RESAMPLINGS:
        raise ValueError(f"resample must be one of {RESAMPLINGS}, not {resample!r}")

    left, top, right, bottom = (int(edge) for edge in box)

    if right < left or bottom < top:
        raise UserError(
            f"face box {left} {top} {right} {bottom} has no area (expected x_min y_min x_max y_max)"
        )

    width, height = right - left + 1, bottom - top + 1
    if max(width, height) * max(scale, 1) > MAX_BOX_SIDE:
        times = "" if scale == 1 else f" times {scale:g}"
        raise UserError(
            f"face box {left} {top} {right} {bottom}{times} is larger than {MAX_BOX_SIDE} px"
        )

    grow = abs(width - height) // 2  # at the low edge; the odd pixel goes to the high edge

    if width < height:
        left -= grow
    else:
        top -= grow

    square = max(width, height)
    square += square % 2  # an odd side grows at the right and at the bottom

    grow = max(1, round(square * scale / 2)) - square // 2  # at every edge, so the centre stays
    left, top, square = left - grow, top - grow, square + 2 * grow

    return PatchFrame(left - square // 2, top - square // 2, 2 * square, resample, angle)


def face_patch(
    image: np.ndarray,
    box: Box,
    resample: str = "nearest",
    scale: float = 1.0,
    *,
    angle: float = 0.0,
) -> tuple[np.ndarray, PatchFrame]:
    """The patch (256, 256, 3) of the face in `box` of `image` (H, W, 3) uint8, and its frame; black
    outside the image.

    "nearest" is `cv2.resize` with INTER_NEAREST. "area" averages when it shrinks, and interpolates
    linearly (centres aligned too) when it enlarges. The channel order stays as it is. A square
    turned by `angle` is first turned back, linearly interpolated.
    """
    frame = patch_frame(box, resample, scale, angle=angle)
    height, width = image.shape[:2]

    if box[0] >= width or box[1] >= height or box[2] < 0 or box[3] < 0:
        edges = " ".join(str(int(edge)) for edge in box)
        raise UserError(f"face box {edges} lies outside the image of {width} x {height} px")

    square = _turned_square(image, frame) if angle else _square(image, frame)

    if resample == "nearest":
        interpolation = cv2.INTER_NEAREST
    else:
        interpolation = cv2.INTER_AREA if frame.side > PATCH_SIZE else cv2.INTER_LINEAR

    return cv2.resize(square, (PATCH_SIZE, PATCH_SIZE), interpolation=interpolation), frame


def _square(image: np.ndarray, frame: PatchFrame) -> np.ndarray:
    """The frame's pixels of the image (side, side, 3), black outside it."""
    height, width = image.shape[:2]
    right, bottom = frame.left + frame.side, frame.top + frame.side  # exclusive
    square = image[max(frame.top, 0) : min(bottom, height), max(frame.left, 0) : min(right, width)]

    if square.shape[:2] != (frame.side, frame.side):
        square = cv2.copyMakeBorder(
            square,
            max(-frame.top, 0),
            max(bottom - height, 0),
            max(-frame.left, 0),
            max(right - width, 0),
            cv2.BORDER_CONSTANT,
            value=(0, 0, 0),
        )

    return square


def _turned_square(image: np.ndarray, frame: PatchFrame) -> np.ndarray:
    """The pixels (side, side, 3) of a turned frame, black outside the image."""
    # What a turned square can reach: OpenCV warps no picture of more than 32,766 px.
    margin = math.ceil(0.21 * frame.side) + 1  # (√2 - 1) / 2 of the side
    x0, y0 = max(frame.left - margin, 0), max(frame.top - margin, 0)
    reach = frame.side + margin
    part = image[y0 : max(frame.top + reach, 0), x0 : max(frame.left + reach, 0)]

    matrix = frame.turn(frame.angle)
    matrix[:, 2] += matrix[:, :2] @ (frame.left, frame.top) - (x0, y0)

    return cv2.warpAffine(
        part,
        matrix,
        (frame.side, frame.side),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )


def overlap_ratios(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (N, 4) with others (M, 4), edges inclusive -> (N, M)."""
    boxes, others = (np.asarray(b, np.float64).reshape(-1, 4) for b in (boxes, others))
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    high = np.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low + 1, 0), axis=-1)  # (N, M, 2) -> (N, M)
    areas, other_areas = (np.prod(b[:, 2:] - b[:, :2] + 1, axis=1) for b in (boxes, others))

    return shared / (areas[:, None] + other_areas - shared)

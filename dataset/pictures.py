"""Reading any picture that OpenCV reads: upright, as eight bits of blue, green and red."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from utils.files import UserError, read_bytes

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".bmp", ".tif", ".tiff"),
    *(".webp", ".avif", ".gif", ".ppm", ".pgm"),
)
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
SENSOR_BITS = (8, 10, 12, 14)  # depths that are stored in 16 bits
# A marker of JPEG; within pixel data FF stands before 00 or a restart marker, D0 to D7, only.
JPEG_MARKER = re.compile(rb"\xff+([\x01-\xcf\xd8-\xfe])")


def read_image(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8 BGR, turned as its EXIF orientation says; a damaged one is
    a `UserError`.

    16-bit images keep their upper eight bits, or those of the 8, 10, 12 or 14 that they use; grey
    becomes three equal channels, alpha is dropped.
    """
    data = read_bytes(path, "image")
    # OpenCV fills what a truncated JPEG lacks with grey.
    image = None if data[:2] == b"\xff\xd8" and not _has_end(data) else decode(data)
    if image is None and is_heic(data):
        raise UserError(f"image {path} is HEIC, which OpenCV does not read; save it as JPEG first")
    if image is None:
        raise UserError(f"image {path} is damaged, or of a kind that OpenCV does not read")

    return image


def decode(data: bytes) -> np.ndarray | None:
    """The picture (H, W, 3) uint8 BGR in a file's bytes; None where OpenCV does not read it."""
    array = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(array, cv2.IMREAD_COLOR)
        if image is not None and image.max() <= 1 << (SENSOR_BITS[-1] - 8):
            image = _bright(image, cv2.imdecode(array, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH))
    except cv2.error:  # e.g. more pixels than OpenCV's limit
        return None

    return _upright(image, data) if image is not None and data[4:8] == b"ftyp" else image


def is_heic(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS


def _has_end(data: bytes) -> bool:
    """Whether a JPEG's end mark stands where its segments lead to; anything may follow it."""
    if data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return True

    place = 2
    while found := JPEG_MARKER.search(data, place):
        place = found.end()
        if found[1] == b"\xd9":
            return True
        if found[1] not in b"\x01\xd8":  # all others tell their length
            place += int.from_bytes(data[place : place + 2], "big")

    return False


def _bright(image: np.ndarray, deep: np.ndarray | None) -> np.ndarray:
    """The upper eight bits in use of a dark picture (H, W, 3) uint16, where it uses fewer than 16;
    else ``image``.
    """
    if deep is None or deep.dtype != np.uint16:
        return image

    bits = next((bits for bits in SENSOR_BITS if int(deep.max()) < 1 << bits), None)

    return image if bits is None else (deep >> (bits - 8)).astype(np.uint8)


def _upright(image: np.ndarray, data: bytes) -> np.ndarray:
    """An AVIF turned and mirrored as its properties say, which OpenCV leaves to the caller."""
    # boxes of nine bytes: length, name, quarter turns anticlockwise or the axis
    turn, mirror = (
        re.search(rb"\0\0\0\x09" + name + b"(.)", data, re.S) for name in (b"irot", b"imir")
    )
    if turn:
        image = np.rot90(image, turn[1][0] & 3)
    if mirror:
        image = np.flip(image, 1 if mirror[1][0] & 1 else 0)

    return np.ascontiguousarray(image)

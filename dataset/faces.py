"""Prepared faces in memory: decoded once, on all cores, and kept as uint8."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from dataset.annotations import ATTRIBUTES, read_crop_list
from dataset.crop import CROP_OFFSET, CROP_SIZE, PATCH_SIZE
from dataset.landmarks import LandmarkScheme, scheme_for
from utils.files import InputError
from utils.runtime import available_cores, progress

PIXEL_MEAN, PIXEL_SCALE = 127.5, 128.0  # network input = (x - 127.5) / 128


@dataclass(frozen=True)
class FaceSet:
    """The faces of one split.

    Args:
        patches: (N, 256, 256, 3) uint8, RGB.
        landmarks: (N, P, 2) float32, x and y in pixels of the 256 patch.
        scheme: meaning of the P landmarks.
        attributes: (N, 6) bool in the order of ``ATTRIBUTES``; a face's memberships in the subset
            lists.
        paths: N patch files.
        meta: contents of the folder's ``meta.json``.
    """

    patches: torch.Tensor
    landmarks: torch.Tensor
    scheme: LandmarkScheme
    attributes: np.ndarray
    paths: list[Path]
    meta: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.patches)

    def to(self, device: torch.device | str) -> FaceSet:
        """The same faces with patches and landmarks on ``device``."""
        return replace(self, patches=self.patches.to(device), landmarks=self.landmarks.to(device))

    def select(self, rows: np.ndarray) -> FaceSet:
        """The faces at ``rows``, indices of them, in that order."""
        return replace(
            self,
            patches=self.patches[rows],
            landmarks=self.landmarks[rows],
            attributes=self.attributes[rows],
            paths=[self.paths[i] for i in rows],
        )

    def crop_landmarks(self) -> torch.Tensor:
        """(N, P, 2) float32 in pixels of the central 128 crop; points outside it are kept as they
        are.
        """
        return self.landmarks - CROP_OFFSET

    def mean_shape(self) -> torch.Tensor:
        """(P, 2) float32: the mean landmark positions, in crop pixels."""
        return self.crop_landmarks().double().mean(dim=0).float()


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Grey values 0..255 -> network input."""
    return (pixels - PIXEL_MEAN) / PIXEL_SCALE


def central_crops(patches: torch.Tensor) -> torch.Tensor:
    """The network's input without augmentation: the central 128 x 128, bit for bit.

    Args:
        patches: (B, 256, 256, 3) uint8, RGB.

    Returns:
        (B, 3, 128, 128) float32, scaled, in channels-last memory order.
    """
    inside = slice(CROP_OFFSET, CROP_OFFSET + CROP_SIZE)
    # (B, H, W, C) -> (B, C, H, W), memory stays as it is
    crops = patches[:, inside, inside].permute(0, 3, 1, 2)

    return scale_pixels(crops.to(torch.float32, memory_format=torch.channels_last))


def list_path(data: Path, split: str, attribute: str | None = None) -> Path:
    """Path of a crop list in a prepared folder."""
    return Path(data) / ("_".join(filter(None, ("WFLW256", split, attribute))) + ".txt")


def read_meta(data: Path) -> dict:
    """The folder's ``meta.json``; what a folder with released lists only implies where there is
    none.
    """
    path = Path(data) / "meta.json"
    if not path.exists():
        return {"resample": "nearest"}

    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not readable as JSON ({error}); prepare the folder again"
        ) from error


def load_faces(data: str | Path, split: str, *, limit: int | None = None) -> FaceSet:
    """Read the patches and landmarks of one split of a prepared folder.

    Args:
        data: folder written by ``dataset/createWFLW256.py``.
        split: ``"train"`` or ``"test"``.
        limit: keep the first ``limit`` faces only.

    Raises:
        InputError: no list in the folder, an empty list, a bad line, a missing or unreadable patch,
            or one that is not 256 x 256.
    """
    data = Path(data)
    source = list_path(data, split)

    if not source.is_file():
        raise InputError(
            f"{data} holds no prepared faces ({source.name} is missing); make them with "
            "python dataset/createWFLW256.py, or name another folder with --data"
        )

    landmarks, paths = read_crop_list(source)
    if not paths:
        raise InputError(f"{source} is empty: there is no face to use; prepare the folder again")

    scheme = scheme_for(landmarks.shape[1])
    attributes = _memberships(data, split, paths)
    paths = paths[:limit]

    return FaceSet(
        patches=torch.from_numpy(_read_patches(source, paths)),
        landmarks=torch.from_numpy(landmarks[: len(paths)].astype(np.float32)),
        scheme=scheme,
        attributes=attributes[: len(paths)],
        paths=paths,
        meta=read_meta(data),
    )


def _memberships(data: Path, split: str, paths: list[Path]) -> np.ndarray:
    """(N, 6) bool: which subset lists of the split name which patch."""
    row = {path: i for i, path in enumerate(paths)}
    attributes = np.zeros((len(paths), len(ATTRIBUTES)), dtype=np.bool_)

    for column, attribute in enumerate(ATTRIBUTES):
        source = list_path(data, split, attribute)
        if not source.is_file():
            continue

        for path in read_crop_list(source)[1]:
            if path not in row:
                raise InputError(
                    f"{source}: {path.name} is not in {list_path(data, split).name}; prepare again"
                )

            attributes[row[path], column] = True

    return attributes


def _read_patches(source: Path, paths: list[Path]) -> np.ndarray:
    """Decode all patches on all cores -> (N, 256, 256, 3) uint8, RGB."""
    patches = np.empty((len(paths), PATCH_SIZE, PATCH_SIZE, 3), dtype=np.uint8)

    def read(i: int) -> None:
        where = f"{source}:{i + 1}: patch {paths[i]}"
        if not paths[i].is_file():
            raise InputError(f"{where} is missing; prepare the folder again")

        pixels = cv2.imread(str(paths[i]), cv2.IMREAD_COLOR)
        if pixels is None:
            raise InputError(f"{where} is not a readable picture; prepare the folder again")

        if pixels.shape[:2] != (PATCH_SIZE, PATCH_SIZE):
            height, width = pixels.shape[:2]
            raise InputError(
                f"{where} is {width}x{height}, not {PATCH_SIZE}x{PATCH_SIZE}; prepare the folder "
                "again"
            )

        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=patches[i])

    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in progress(
            pool.map(read, range(len(paths))),
            desc=f"reading {source.stem}",
            total=len(paths),
            unit="face",
        ):
            pass

    return patches

"""The faces of a prepared split: landmarks in memory, patches decoded once and memory-mapped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch

from dataset.annotations import ATTRIBUTES, list_path, read_crop_list
from dataset.crop import BOX_SCALES, CROP_OFFSET, CROP_SIZE
from dataset.landmarks import LandmarkScheme, own_scheme, require_eye_distance, scheme_for
from dataset.patches import open_patches
from utils.files import UserError, read_json

PIXEL_MEAN, PIXEL_SCALE = 127.5, 128.0  # network input = (x - 127.5) / 128


@dataclass(frozen=True)
class FaceSet:
    """The faces of one split.

    Args:
        patches: (N, 256, 256, 3) uint8, RGB; a tensor over a memory-mapped file where there is one.
        landmarks: (N, P, 2) float32, x and y in pixels of the 256 patch.
        scheme: meaning of the P landmarks.
        attributes: (N, 6) bool in the order of ``ATTRIBUTES``; a face's memberships in the subset
            lists.
        paths: N patch files.
        meta: contents of the folder's ``meta.json``.
        sums: (N,) int64, the sum of each patch's values; None where no folder was read.
    """

    patches: torch.Tensor
    landmarks: torch.Tensor
    scheme: LandmarkScheme
    attributes: np.ndarray
    paths: list[Path]
    meta: dict = field(default_factory=dict)
    sums: np.ndarray | None = None

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
            sums=None if self.sums is None else self.sums[rows],
        )

    def crop_landmarks(self) -> torch.Tensor:
        """(N, P, 2) float32 in pixels of the central 128 crop; points outside it are kept as they
        are.
        """
        return self.landmarks - CROP_OFFSET

    def fingerprint(self) -> str:
        """Digest of landmarks and patches: equal wherever the same faces lie."""
        assert self.sums is not None, "faces that were read have sums"
        digest = blake2b(self.landmarks.numpy().tobytes(), digest_size=16)
        digest.update(self.sums.tobytes())

        return digest.hexdigest()

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


def subset_lists(data: Path) -> dict[str, Path]:
    """The crop lists of the test subsets that a prepared folder holds, by attribute.

    They are called ``WFLW256_test_<attribute>.txt``, and ``WFLW256_<attribute>.txt`` in folders
    that the released code has prepared.
    """
    names = {a: (list_path(data, f"test_{a}"), list_path(data, a)) for a in ATTRIBUTES}
    found = {a: next(filter(Path.is_file, paths), None) for a, paths in names.items()}

    return {attribute: path for attribute, path in found.items() if path is not None}


def read_meta(data: Path) -> dict:
    """The folder's ``meta.json``; what a folder with released lists only implies where there is
    none. Folders of earlier versions have no ``box_scale``, which means 1.
    """
    path = Path(data) / "meta.json"
    meta = read_json(path, advice="prepare the folder again")
    if meta is None:
        return {"resample": "nearest"}

    scale = meta.get("box_scale", 1.0)
    if type(scale) not in (int, float) or not BOX_SCALES[0] <= scale <= BOX_SCALES[1]:
        raise UserError(f"{path}: box_scale is {scale!r}, not a scale; prepare the folder again")

    return meta


def read_landmarks(
    data: Path, split: str, meta: dict
) -> tuple[np.ndarray, list[Path], LandmarkScheme]:
    """Landmarks (N, P, 2) float64 in patch px and N patches of one of a folder's crop lists, and
    the scheme of the P landmarks: that of ``meta``, or else the built-in one.
    """
    own, source = own_scheme(meta, data / "meta.json"), list_path(data, split)
    landmarks, paths = read_crop_list(source, own.num_points if own else None)
    if not paths:
        raise UserError(f"{source} is empty: there is no face to use; prepare the folder again")

    return landmarks, paths, own or scheme_for(landmarks.shape[1])


def load_faces(data: str | Path, split: str, *, limit: int | None = None) -> FaceSet:
    """Read the patches and landmarks of one split of a prepared folder.

    Args:
        data: folder written by ``dataset/createWFLW256.py``.
        split: ``"train"`` or ``"test"``.
        limit: keep the first ``limit`` faces only.

    Raises:
        UserError: no list in the folder, an empty list, a bad line, a missing or unreadable patch,
            or one that is not 256 x 256.
    """
    data = Path(data)
    source = list_path(data, split)

    if not source.is_file():
        raise UserError(
            f"{data} holds no prepared faces ({source.name} is missing); name another folder with "
            "--data, or prepare WFLW (https://wywu.github.io/projects/LAB/WFLW.html) with python "
            "dataset/createWFLW256.py --wflw DIR; python synthetic/createSynthetic.py --out DIR "
            "makes faces in WFLW's layout"
        )

    meta = read_meta(data)
    landmarks, paths, scheme = read_landmarks(data, split, meta)
    if split == "test":
        require_eye_distance(landmarks, scheme, lambda index: f"{source}, line {index + 1}")

    subsets = subset_lists(data) if split == "test" else {}
    attributes = _memberships(subsets, source, landmarks, paths)
    patches, sums = open_patches(source, paths, limit=limit)
    count = len(patches)

    return FaceSet(
        patches=torch.from_numpy(patches),
        landmarks=torch.from_numpy(landmarks[:count].astype(np.float32)),
        scheme=scheme,
        attributes=attributes[:count],
        paths=paths[:count],
        meta=meta,
        sums=sums,
    )


def _memberships(
    subsets: dict[str, Path], whole: Path, landmarks: np.ndarray, paths: list[Path]
) -> np.ndarray:
    """(N, 6) bool: which subset lists name which face of the list ``whole``.

    Released subset lists name copies of the patches; those are known by their landmarks.
    """
    row = {path: i for i, path in enumerate(paths)}
    row_of_points: dict[bytes, int] = {}
    attributes = np.zeros((len(paths), len(ATTRIBUTES)), dtype=np.bool_)

    for attribute, source in subsets.items():
        for points, path in zip(*read_crop_list(source, landmarks.shape[1]), strict=True):
            if path not in row and not row_of_points:
                row_of_points = {points.tobytes(): i for i, points in enumerate(landmarks)}

            face = row.get(path, row_of_points.get(points.tobytes()))
            if face is None:
                raise UserError(f"{source}: {path.name} is not in {whole.name}; prepare again")

            attributes[face, ATTRIBUTES.index(attribute)] = True

    return attributes

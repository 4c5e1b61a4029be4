"""Faces of several known sub-domains, to ask of a network whether it tells them apart.

Used by ``research/experiments.py``, which explains the suites.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np

from dataset import createWFLW256
from dataset.annotations import read_crop_list, write_crop_list
from dataset.faces import list_path
from synthetic import createSynthetic
from utils.files import UserError, make_folder

# Sub-domains: what createSynthetic.py leaves out of each. A mixture of D takes the first D.
DOMAINS = {
    "plain": ("pose", "lighting", "occluders", "backgrounds"),
    "lighting": ("pose", "occluders", "backgrounds"),
    "pose": ("lighting", "occluders", "backgrounds"),
    "cluttered": ("pose", "lighting"),
}


def mixture(folder: Path, count: int, total: int) -> Path:
    """A prepared folder of faces of ``count`` sub-domains in equal parts, ``total`` to train on and
    a quarter to test.

    Faces are made and prepared where missing; the mixture's lists point at them. No person is in
    two sub-domains.
    """
    # The largest share of each: in the smallest of the mixtures of 1, 2 and 4 that has it.
    needed = {"plain": total, "lighting": total // 2, "pose": total // 4, "cluttered": total // 4}
    mixed = make_folder(folder / f"mixture{count}_of_{total}")
    parts: dict[str, list] = {"train": [], "test": []}

    for seed, (name, without) in enumerate(list(DOMAINS.items())[:count]):
        prepared = folder / f"{name}_{total}" / name
        counts = needed[name], max(2, needed[name] // 4)
        options = ["--seed", str(seed), "--without", *without]
        make_faces(folder / f"{name}_{total}_set", prepared, counts, options)

        for split, faces in parts.items():
            landmarks, patches = read_crop_list(list_path(prepared, split))
            share = (total if split == "train" else max(2 * count, total // 4)) // count
            faces.append((landmarks[:share], patches[:share]))

        (mixed / "meta.json").write_bytes((prepared / "meta.json").read_bytes())

    for split, faces in parts.items():
        write_joined(mixed, split, faces)

    return mixed


def synthetic_and_real(folder: Path, real: Path, count: int, limit: int | None = None) -> Path:
    """A prepared folder that trains on real and synthetic faces together and tests on real ones.

    Args:
        folder: where synthetic faces and the lists go.
        real: a prepared folder of real faces with 98 points.
        count: how many synthetic faces train; as many are tested as there are real ones.
        limit: the first N of the real faces only.
    """
    found = {}
    for split in ("train", "test"):
        landmarks, patches = read_crop_list(list_path(real, split))
        found[split] = landmarks[:limit], patches[:limit]

    tests = len(found["test"][1])
    home = folder / f"synthetic_{count}_{tests}"
    prepared = home / "synthetic"
    make_faces(home / "set", prepared, (count, tests), ["--seed", "0"])

    faces = len(found["train"][1])
    mixed = make_folder(folder / f"{real.resolve().name}_{faces}_and_{count}_synthetic")
    (mixed / "meta.json").write_bytes((real / "meta.json").read_bytes())
    write_joined(mixed, "train", [found["train"], read_crop_list(list_path(prepared, "train"))])
    write_joined(mixed, "test", [found["test"]])

    return mixed


def synthetic_part(mixed: Path) -> Path:
    """The prepared folder of the synthetic faces in a mixture of :func:`synthetic_and_real`."""
    return read_crop_list(list_path(mixed, "train"))[1][-1].parents[1]


def make_faces(folder: Path, prepared: Path, counts: tuple[int, int], options: list[str]) -> None:
    """Make synthetic faces to train and to test, and prepare them; what is there already stays."""
    make_folder(prepared.parent)
    train, test = map(str, counts)

    with redirect_stdout(sys.stderr):
        for step, argv in (
            (createSynthetic, ["--out", str(folder), "--train", train, "--test", test, *options]),
            (createWFLW256, ["--wflw", str(folder), "--out", str(prepared)]),
        ):
            if step.main(argv):
                raise UserError(
                    f"the faces of sub-domain {prepared.name} could not be made, see above"
                )


def write_joined(folder: Path, split: str, faces: list[tuple[np.ndarray, list[Path]]]) -> None:
    """Write the crop list of a split that is made of several sets, one after the other."""
    landmarks = np.concatenate([points for points, _ in faces])
    patches = [path for _, paths in faces for path in paths]
    write_crop_list(list_path(folder, split), landmarks, patches)

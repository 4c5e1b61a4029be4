"""Entry points of ``torch.hub``.

    predictor = torch.hub.load(REPO, "sepbn_landmarks")
    network = torch.hub.load(REPO, "sepbn_vanilla", pretrained=True)

REPO is a repository's name at a host that torch.hub knows, or a folder with ``source="local"``.
A caller's own modules may be called ``utils`` or ``models`` as well; neither gets in the other's
way. Save a network's ``state_dict``, since pickle does not find its class under these names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.vanilla import VanillaCNN
    from prediction.predictor import LandmarkPredictor

dependencies = ["torch", "numpy", "cv2", "tqdm"]

ROOT = Path(__file__).resolve().parent
ROOMS = ("utils", "models", "dataset", "prediction")


def sepbn_landmarks(
    device: str = "auto", batch_size: int = 64, **options: Any
) -> LandmarkPredictor:
    """The SepBN network that comes with the code, ready to be called on pictures.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        batch_size: faces that go through the network at once.
        options: more of ``LandmarkPredictor``'s: points, views, refine, and detector, the path of
            YuNet's file where it cannot be fetched.

    Returns:
        A ``LandmarkPredictor``; call it with a path or an image (H, W, 3) uint8 **BGR** for
        landmarks (N, 98, 2) in image px of the faces that YuNet finds, or of N boxes (left, top,
        right, bottom) in image px, edges inclusive.
    """
    with _own_modules():
        from prediction.predictor import LandmarkPredictor

        return LandmarkPredictor(device=device, batch_size=batch_size, **options)


def sepbn_vanilla(pretrained: bool = False, **settings: Any) -> VanillaCNN:
    """The Vanilla CNN with SepBN: (N, 3, 128, 128) -> (N, 196), x0 y0 x1 y1 … in crop pixels.

    Args:
        pretrained: with the weights that come with the code (width 16, K = 3, G = 1), in
            evaluation mode.
        settings: of a fresh network, those of ``models.BaselineSepDyBN``: num_sets, groups,
            temperature, attention_grid, num_landmarks, width.
    """
    if pretrained and settings:
        raise ValueError(f"the pretrained network has settings of its own; leave out {settings}")

    with _own_modules():
        from models.checkpoint import SHIPPED, load_model
        from models.vanilla import BaselineSepDyBN, VanillaCNN

        if not pretrained:
            return BaselineSepDyBN(**settings)

        model = load_model(SHIPPED).model
        assert isinstance(model, VanillaCNN), "a file of weights holds nothing else"

        return model


@contextmanager
def _own_modules() -> Iterator[None]:
    """Imports inside find this folder's modules, and leave those of the caller as they were."""
    before = {name: module for name, module in sys.modules.items() if _is_room(name)}
    for name, module in before.items():
        place = Path(getattr(module, "__file__", None) or "/").resolve()
        if ROOT not in place.parents:
            del sys.modules[name]

    sys.path.insert(0, str(ROOT))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(ROOT))
        for name in [*filter(_is_room, sys.modules)]:
            del sys.modules[name]

        sys.modules.update(before)


def _is_room(name: str) -> bool:
    return name.split(".")[0] in ROOMS

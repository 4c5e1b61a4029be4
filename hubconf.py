"""Entry points of ``torch.hub``.

    predictor = torch.hub.load(REPO, "sepbn_landmarks")
    network = torch.hub.load(REPO, "sepbn_vanilla", pretrained=True)

REPO is a repository's name at a host that torch.hub knows, or a folder with ``source="local"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.vanilla import VanillaCNN
    from prediction.predictor import LandmarkPredictor

dependencies = ["torch", "numpy", "cv2", "tqdm"]


def sepbn_landmarks(device: str = "auto", batch_size: int = 64) -> LandmarkPredictor:
    """The SepBN network that comes with the code, ready to be called on pictures.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        batch_size: faces that go through the network at once.

    Returns:
        A ``LandmarkPredictor``; call it with an image (H, W, 3) uint8 **BGR** and N boxes (left,
        top, right, bottom) in whole px, edges inclusive, for landmarks (N, 98, 2) in image px.
    """
    from models.checkpoint import SHIPPED
    from prediction.predictor import LandmarkPredictor

    return LandmarkPredictor(SHIPPED, device=device, batch_size=batch_size)


def sepbn_vanilla(pretrained: bool = False, **settings: Any) -> VanillaCNN:
    """The Vanilla CNN with SepBN: (N, 3, 128, 128) -> (N, 196), x0 y0 x1 y1 … in crop pixels.

    Args:
        pretrained: with the weights that come with the code (width 16, K = 3, G = 1), in
            evaluation mode.
        settings: of a fresh network, those of ``models.BaselineSepDyBN``: num_sets, groups,
            temperature, attention_grid, num_landmarks, width.
    """
    from models.checkpoint import SHIPPED, load_model
    from models.vanilla import BaselineSepDyBN, VanillaCNN

    if not pretrained:
        return BaselineSepDyBN(**settings)

    if settings:
        raise ValueError(f"the pretrained network has settings of its own; leave out {settings}")

    model = load_model(SHIPPED).model
    assert isinstance(model, VanillaCNN), "a file of weights holds nothing else"

    return model

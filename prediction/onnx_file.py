"""A network as an ONNX file, for onnxruntime and OpenCV; export.py says what is in it."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dataset.crop import CROP_SIZE
from dataset.faces import PIXEL_MEAN, PIXEL_SCALE
from dataset.landmarks import define, scheme_of_network
from models.checkpoint import LoadedModel, load_model
from models.folding import fold_normalisation
from utils.files import UserError, atomic_write

if TYPE_CHECKING:
    import onnx

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-3  # crop px
CROP_RULE = (
    "inclusive integer box; the shorter side grows at both ends to a square, by d//2 at its low "
    "and d//2 + d%2 at its high edge; an odd side grows by 1 at right and bottom; the square then "
    "grows about its centre to the side S = 2 * round(side * box_scale / 2), a half rounded to "
    "even; what is outside the image is black before scaling; a patch of twice the side S, from "
    "(left - S//2, top - S//2), is resampled to 256x256 and its central 128x128 are the crop"
)
# of the patch, and the way back of its landmarks
RESAMPLING = {
    "nearest": (
        "cv2.resize with INTER_NEAREST",
        "image = (crop + 64) * S / 128 + (left - S//2, top - S//2)",
    ),
    "area": (
        "cv2.resize with INTER_AREA where it shrinks (S > 128), else with INTER_LINEAR",
        "image = (crop + 64.5) * S / 128 - 0.5 + (left - S//2, top - S//2)",
    ),
}
OLDEST_OPSET = 18  # the exporter's own; onnxruntime 1.14 and OpenCV 4.10 know it


def write_onnx(checkpoint: Path, path: Path, opset: int = OLDEST_OPSET) -> None:
    """Write a checkpoint's network to ``path`` and say what it is; it is checked against torch
    before it is written.

    Raises:
        UserError: packages are missing, ``path`` is the checkpoint itself, the installed exporter
            does not know the opset, or onnxruntime answers otherwise than torch.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

    if missing:
        raise UserError(f"export needs packages that are missing; pip install {' '.join(missing)}")

    if path.exists() and checkpoint.exists() and path.samefile(checkpoint):
        raise UserError(
            f"--onnx {path} is the checkpoint itself; choose another name, so that the trained "
            "network is kept"
        )

    loaded = load_model(checkpoint)
    exported = to_onnx(fold_normalisation(loaded.model), opset)
    _add_metadata(exported, loaded)
    data = exported.SerializeToString()
    difference = _largest_difference(data, loaded.model)

    if not difference <= TOLERANCE:
        raise UserError(
            f"{path} not written: it differs from torch by {difference:.2g} crop px (> {TOLERANCE})"
        )

    with atomic_write(path) as file:
        file.write(data)

    print(f"{checkpoint}: {loaded.config['arm']}")
    print(
        f"{path}: {len(data) / 1e6:.1f} MB, onnxruntime differs from torch by at most "
        f"{difference:.1e} crop px"
    )


def to_onnx(model: nn.Module, opset: int = OLDEST_OPSET) -> onnx.ModelProto:
    """The network with an open batch size, without the exporter's notes on source files.

    Raises:
        UserError: an opset that the installed exporter does not know.
    """
    import onnx

    # it warns that torchvision is not installed
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    crops = torch.zeros(2, 3, 128, 128)  # a batch of 1 would be taken for a constant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model,
            (crops,),
            dynamo=True,
            input_names=["crops"],
            output_names=["landmarks"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
            opset_version=opset,
        )

    assert program is not None, "only the exporter without dynamo returns nothing"
    proto = program.model_proto
    made = next(each.version for each in proto.opset_import if not each.domain)
    if made != opset:
        raise UserError(f"--opset {opset} is not known to the installed exporter; {made} is")

    # as old a file format as these operators allow: older readers refuse newer ones
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import)

    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        item.ClearField("metadata_props")

    return proto


def _add_metadata(proto: onnx.ModelProto, loaded: LoadedModel) -> None:
    """What a user needs to feed the file and to read its answer, as key-value strings."""
    import onnx

    scheme = scheme_of_network(loaded.config, loaded.path)
    resampling, way_back = RESAMPLING[loaded.config["resample"]]

    entries = {
        "input_size": CROP_SIZE,
        "channel_order": "RGB",
        "scaling": f"(x - {PIXEL_MEAN}) / {PIXEL_SCALE:g}, x in 0..255",
        "output": "x0 y0 x1 y1 ... in pixels of the crop; integers are pixel centres; may lie "
        "outside the crop",
        "scheme": scheme.name,
        "scheme_definition": json.dumps(define(scheme)),
        "outer_eyes": f"{scheme.outer_eyes[0]} {scheme.outer_eyes[1]}",
        "crop_rule": CROP_RULE,
        "resample": loaded.config["resample"],
        "resampling": resampling,
        "way_back": way_back,
        "box_scale": loaded.config["box_scale"],
        "run": loaded.name,
        "arm": loaded.config["arm"],
    }

    onnx.helper.set_model_props(proto, {key: str(value) for key, value in entries.items()})


def _largest_difference(data: bytes, model: nn.Module) -> float:
    """Largest difference between onnxruntime and torch, in crop px, over three random crops."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    crops = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = model(crops)

    answer = torch.from_numpy(session.run(None, {"crops": crops.numpy()})[0])

    return (answer - expected).abs().max().item()  # nan stays nan

"""Networks and layers. This package knows nothing of the rest of the project."""

from models.sepbn import SepBatchNorm2d, convert_batchnorm, synchronize_statistics
from models.vanilla import Baseline, BaselineSepDyBN, VanillaCNN, released_state_dict

__all__ = [
    "Baseline",
    "BaselineSepDyBN",
    "SepBatchNorm2d",
    "VanillaCNN",
    "convert_batchnorm",
    "released_state_dict",
    "synchronize_statistics",
]

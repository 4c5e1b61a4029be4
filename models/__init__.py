"""Networks and layers. This package knows nothing of the rest of the project."""

from models.sepbn import (
    SepBatchNorm1d,
    SepBatchNorm2d,
    SepBatchNorm3d,
    TemperatureSchedule,
    convert_batchnorm,
    parameter_groups,
    set_temperature,
    synchronize_statistics,
)
from models.vanilla import Baseline, BaselineSepDyBN, VanillaCNN, released_state_dict

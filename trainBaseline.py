"""Train the Vanilla CNN with BatchNorm, or with --norm none as the released baseline."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from training.config import TrainConfig, parse_arguments
from utils.files import UserError, reports_user_errors

if TYPE_CHECKING:
    from models import VanillaCNN


def build(config: TrainConfig, num_landmarks: int) -> VanillaCNN:
    """The network to train."""
    from models import Baseline

    if config.norm == "sepbn":  # as the file of --init has it
        raise UserError(f"{config.init} has SepBN: start from it with trainBaselineSepDyBN.py")

    return Baseline(config.norm, num_landmarks, config.width)


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    config, existing = parse_arguments(argv, sepbn=False)
    from training.recipe import train

    return train(config, build, **existing)


if __name__ == "__main__":
    sys.exit(main())

"""Train the Vanilla CNN with SepBN: K attention-weighted sets of scale and shift for each of G
channel groups.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from training.config import TrainConfig, parse_arguments
from utils.files import reports_user_errors

if TYPE_CHECKING:
    from models import VanillaCNN


def build(config: TrainConfig, num_landmarks: int) -> VanillaCNN:
    """The network to train."""
    from models import BaselineSepDyBN

    return BaselineSepDyBN(
        config.sets,
        config.groups,
        config.temperature,
        attention_grid=config.attention_grid,
        num_landmarks=num_landmarks,
        width=config.width,
    )


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    config, existing = parse_arguments(argv, sepbn=True)
    from training.recipe import train

    return train(config, build, **existing)


if __name__ == "__main__":
    sys.exit(main())

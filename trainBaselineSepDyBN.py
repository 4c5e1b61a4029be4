"""Train the Vanilla CNN with SepBN: K attention-weighted sets of scale and shift for each of G
channel groups.
"""

from __future__ import annotations

import sys

from training.config import parse_arguments
from utils.files import reports_user_errors


@reports_user_errors
def main(argv: list[str] | None = None) -> int:
    config, resume, overwrite = parse_arguments(argv, sepbn=True)
    from training.loop import train
    from utils.runtime import exit_code

    return exit_code(train(config, resume=resume, overwrite=overwrite))


if __name__ == "__main__":
    sys.exit(main())

"""`doctor`: look before you train."""

import sys
from typing import Any

from stml_semi.cli.terminal import one_line_errors, quiet_libraries
from stml_semi.cli.train import field_values, with_training_flags


@with_training_flags
def doctor(**flags: Any) -> None:
    """Would a run work here, and how fast? Looks at the machine, the images, the model and the disk.

    Example: stml-semi doctor --labeled birds/ --unlabeled photos/ --backbone facebook/dinov2-small

    Takes every flag of `semi`, `unsup` and `sup`. Exit code 1 if something is broken. Nothing is trained and nothing is
    left behind.
    """
    with one_line_errors():
        values = field_values(flags)
        quiet_libraries()
        from stml_semi.cli.printing import print_finding
        from stml_semi.training.preflight.doctor import examine

        broken = 0
        for finding in examine(values):
            print_finding(finding)
            broken += finding.level == "broken"
    print(f"{broken} problem{'s' * (broken != 1)} to mend." if broken else "Nothing is broken.")
    sys.exit(1 if broken else 0)

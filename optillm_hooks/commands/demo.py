"""Ask the small local model the same problems plainly and through cot_decoding.

Each problem is printed with both answers as they arrive; the two accuracies come last. A proxy is
started for it on a free port, and stopped.
"""

import argparse

from optillm_hooks.commands.arguments import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", type=positive, default=40, metavar="N", help="(default: 40)")


def run(given: argparse.Namespace) -> int:
    from optillm_hooks.evaluation.demo import demonstrate

    demonstrate(given.problems)
    return 0

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Compose digits on photographs: classes, masks and boxes at once."""

import argparse
import sys
from pathlib import Path

from vim_mm.demo.data import default_out, digits_recipe, run_recipe


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=default_out('digits_on_photographs'),
        help='folder to write (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of all random choices')
    return parser.parse_args()


def main() -> int:
    """Prepare the dataset and return the exit code."""
    args = parse_args()
    return run_recipe(digits_recipe(seed=args.seed), args.out)


if __name__ == '__main__':
    sys.exit(main())

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Prepare the solar cells of `elpv-dataset` for two-class classification."""

import argparse
import sys
from pathlib import Path

from vim_mm.demo.data import default_out, run_recipe, solar_cells_recipe


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=default_out('solar_cells'),
        help='folder to write (default: %(default)s)')
    return parser.parse_args()


def main() -> int:
    """Prepare the dataset and return the exit code."""
    args = parse_args()
    return run_recipe(solar_cells_recipe(), args.out)


if __name__ == '__main__':
    sys.exit(main())

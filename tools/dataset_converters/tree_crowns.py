# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Prepare the tree crowns of `deepforest` as a COCO detection set."""

import argparse
import sys
from pathlib import Path

from vim_mm.demo.data import default_out, run_recipe, tree_crowns_recipe


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=default_out('tree_crowns'),
        help='folder to write (default: %(default)s)')
    return parser.parse_args()


def main() -> int:
    """Prepare the dataset and return the exit code."""
    args = parse_args()
    return run_recipe(tree_crowns_recipe(), args.out)


if __name__ == '__main__':
    sys.exit(main())

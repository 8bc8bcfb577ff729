# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Draw how tasks use experts.

``python tools/analysis_tools/draw_routing.py RUN``.
"""

# Comes first: it prepares the stack as every tool does.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from pathlib import Path
from typing import List, Optional

from mmengine.runner import find_latest_checkpoint

from vim_mm.report.routing import (draw_information, draw_usage,
                                   read_information, read_usage)
from vim_mm.utils.cli import run_cli


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw heat maps of tasks and experts, one per layer, and '
        'their mutual information over the iterations.')
    parser.add_argument(
        'run',
        help='work_dir of a run, of which both are drawn; or a checkpoint '
        '(.pth) or moe file (.safetensors), for heat maps, or a '
        'vis_data/scalars.json, for curves')
    parser.add_argument(
        '--out', default='routing', help='folder of the images to write')
    parser.add_argument(
        '--format', default='png', help='suffix of the images')
    return parser.parse_args(argv)


def draw(run: Path, folder: Path, suffix: str) -> List[Path]:
    """Draw what a run, or one file of it, tells.

    Args:
        run (Path): The work_dir or the file.
        folder (Path): Where to.
        suffix (str): Format of the images.

    Returns:
        list[Path]: The images.

    Raises:
        FileNotFoundError: If the run or a file of it is missing.
        ValueError: If nothing was logged.
    """
    checkpoint = scalars = run
    if run.is_dir():
        checkpoint = find_latest_checkpoint(str(run))
        if checkpoint is None:
            raise FileNotFoundError(
                f"There is no checkpoint in '{run}'; name the work_dir of a "
                'run, or a file.')
    elif run.suffix == '.json':
        checkpoint = None
    else:
        scalars = None
    # all is read before anything is written
    usage = checkpoint and read_usage(Path(checkpoint))
    tasks = {t for rows in (usage or {}).values() for t in rows}
    steps = None
    if scalars and (usage is None or len(tasks) > 1):
        steps = read_information(scalars)
    images = []
    if usage:
        images.append(folder / f'usage.{suffix}')
        draw_usage(usage, images[-1])
    if steps:
        images.append(folder / f'information.{suffix}')
        draw_information(steps, images[-1], len(tasks) or None)
    return images


def main() -> None:
    args = parse_args()
    for image in draw(Path(args.run), Path(args.out), args.format):
        print(image)


if __name__ == '__main__':
    run_cli(main)

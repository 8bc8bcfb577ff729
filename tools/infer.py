# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Answer images with one or several tasks that share a trunk.

    python tools/infer.py photos/ \\
        --model digits-cls=configs/demo/downstream_digits_cls.py,cls.pth \\
        --model digits-det=configs/demo/downstream_digits_det.py,det.pth \\
        --out-dir out
"""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import contextlib
import json
import sys
from typing import List, Tuple

from vim_mm.apis.inferencer import ViMInferencer
from vim_mm.apis.inputs import tasks_of
from vim_mm.apis.results import words
from vim_mm.utils.cli import run_cli, visible
from vim_mm.utils.config import add_cfg_options, read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Answer images with tasks that share a trunk',
        epilog='What is printed and written, and how to serve from Python, '
        'is in docs/serving.md.')
    parser.add_argument('inputs', nargs='+', help='images, folders, URLs')
    parser.add_argument(
        '--model',
        action='append',
        required=True,
        metavar='[NAME=]CONFIG,CHECKPOINT[,TASK]',
        help='a task to serve; once for each. NAME is that of the config file '
        'if it is not given. TASK names the task of the model, or of its '
        'fusion, where it has several (default: NAME, if it is one). A '
        'multi-task model without NAME serves all its tasks')
    parser.add_argument(
        '--task',
        nargs='+',
        metavar='NAME',
        help='the tasks that answer every image (default: all)')
    parser.add_argument('--out-dir', default='', help='folder for results')
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images a batch')
    parser.add_argument(
        '--score-thr',
        type=share,
        default=0.3,
        help='boxes from this score on are drawn and counted')
    parser.add_argument(
        '--device', help='cpu, cuda, cuda:1, … (default: best)')
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile the backbones: slow to start, then faster')
    parser.add_argument(
        '--json', action='store_true', help='print one JSON line an image')
    parser.add_argument(
        '--show', action='store_true', help='show drawings in a window')
    add_cfg_options(parser)
    return parser.parse_args()


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text} is no score from 0 to below '
                                         '1')
    return value


def parse_model(text: str) -> Tuple[str, List[str]]:
    """``[NAME=]CONFIG,CHECKPOINT[,TASK]`` in parts; NAME may be empty.

    Raises:
        ValueError: If it has another form.
    """
    name, named, rest = text.partition('=')
    parts = (rest if named else text).split(',')
    if named and not name or len(parts) not in (2, 3) or not all(parts):
        raise ValueError(f'--model {text} is not NAME=CONFIG,CHECKPOINT or '
                         'NAME=CONFIG,CHECKPOINT,TASK, NAME= left out or '
                         'not.')
    return name if named else '', parts


def build(args: argparse.Namespace) -> ViMInferencer:
    """The inferencer of all ``--model``."""
    inferencer = ViMInferencer({},
                               device=args.device,
                               show_progress=sys.stderr.isatty(),
                               compile=args.compile or None)
    for text in args.model:
        name, (config, *rest) = parse_model(text)
        cfg = read_config(config, args.cfg_options)
        sources = tasks_of(cfg, *rest)
        if name in sources:
            sources = {name: sources[name]}
        elif name and len(sources) == 1:
            sources = {name: source for source in sources.values()}
        elif name:
            raise ValueError(f"--model {name}=… names one task, but its model "
                             f'has {list(sources)}; leave NAME= out, or '
                             'append ,TASK.')
        for own, source in sources.items():
            inferencer.add_task(own, *source)
    return inferencer


def answer(args: argparse.Namespace) -> dict:
    """The results of all tasks on all images."""
    inferencer = build(args)
    held, apart = (size / 2**20 for size in inferencer.memory())
    print(f'{len(inferencer.tasks)} tasks in {held:.0f} MB of weights, '
          f'{apart:.0f} MB as separate models.')
    return inferencer(args.inputs,
                      batch_size=args.batch_size,
                      task=args.task or list(inferencer.tasks),
                      out_dir=args.out_dir,
                      show=args.show,
                      pred_score_thr=args.score_thr)


def main() -> int:
    args = parse_args()
    # only answers go to stdout, output of libraries to stderr
    with contextlib.redirect_stdout(sys.stderr):
        results = answer(args)
    for found in filter(None, results['predictions']):
        if args.json:
            print(json.dumps(found, default=lambda array: array.tolist()))
        else:
            said = words(found, args.score_thr)
            print(f'{found["img_path"]}\t{found["task"]}\t{visible(said)}')
    lost = len(results['errors'])
    if lost:
        print(
            f'Error: {lost} of {len(results["predictions"])} answers are '
            'missing; each is explained above.',
            file=sys.stderr)
    return 1 if lost else 0


if __name__ == '__main__':
    run_cli(main)

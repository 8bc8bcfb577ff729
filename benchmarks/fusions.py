# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which fusion helps a task of few images, whatever the head.

    python benchmarks/fusions.py [CONFIG ...] [--zoo ZOO] [--out FILE.json]

For every draw of a few training images and every method: fuse the zoo's
modules, solve the closed-form ridge head on the drawn images, and report
its balanced accuracy on test images that are never drawn: over images in
classification, over patches in detection and segmentation. Nothing but the
row called oracle is chosen by the test images.

Every image goes through the config's training pipeline once, for all
methods. The trunk, the single modules and fixed weights do not depend on the
draw: their features are taken once, and scores of single modules are made
from them. Seconds and passes are those of fusing alone, trying modules
included; judging it is not.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import json
import platform
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.utils import get_git_hash
from rich.table import Table

from vim_mm.engine.hooks import HoldOutGatesHook, ScoreGatesHook
from vim_mm.evaluation.ridge import held_out_scores
from vim_mm.features.module_rows import TRUNK
from vim_mm.report.verdicts import spread
from vim_mm.utils.cli import run_cli, table_console
from vim_mm.utils.config import add_cfg_options, read_config
from vim_mm.utils.files import write_atomic

from few_shot import FewShot, Rows, accuracy, draw, scorable  # isort:skip
from methods import (CHOSEN, FIXED, METHODS, ORACLE, Method,  # isort:skip
                     Result)

#: What fits two CPU cores and a few minutes at 98 px.
DEFAULT_CONFIG = 'configs/demo/downstream_digits_cls.py'


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare fusions')
    parser.add_argument(
        'configs', nargs='*', default=[DEFAULT_CONFIG],
        help='downstream configs with a ViMBackbone and modules')
    parser.add_argument('--zoo', help="instead of the configs' own")
    parser.add_argument('--draws', type=int, default=3)
    parser.add_argument(
        '--num-train', type=int, default=50, help='images in a draw')
    parser.add_argument(
        '--num-test', type=int, default=100,
        help='test images, drawn once')
    parser.add_argument(
        '--steps', type=int, default=6, help='of HoldOutGatesHook')
    parser.add_argument(
        '--step-pictures', type=int, default=24, help='images in a step')
    parser.add_argument(
        '--lr', type=float, default=0.3, help='of logits; few steps, large')
    parser.add_argument(
        '--linear-lr', type=float, default=0.05,
        help='of LinearMoE, whose weights no softmax bounds')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--out', help='JSON file for all figures')
    add_cfg_options(parser)
    return parser.parse_args(argv)


class Bench:
    """All figures of one config.

    Args:
        task (FewShot): Model and images.
        args (argparse.Namespace): See :func:`parse_args`.

    Raises:
        ValueError: If a draw would take all training images.
    """

    def __init__(self, task: FewShot, args: argparse.Namespace) -> None:
        if not 2 <= args.num_train < len(task.pool):
            raise ValueError(
                f'--num-train {args.num_train} of {len(task.pool)} training '
                'images leaves nothing to draw; use at least 2, and fewer '
                'than there are.')
        self.task, self.args = task, args
        self.deals = task.settings.get('deals', ScoreGatesHook().deals)
        self.results: Dict[str, Result] = {}

    def run(self) -> None:
        """Fill :attr:`results`."""
        args = self.args
        draws = [
            draw(self.task.pool, args.num_train, i) for i in range(args.draws)
        ]
        for drawn in draws:
            if not scorable([self.task.pool[i] for i in drawn]):
                raise ValueError(
                    f'--num-train {args.num_train} draws fewer than two '
                    'classes twice, and halves of such images share '
                    'nothing to be scored by; draw more.')
        # only what some draw needs
        self.union = sorted(set().union(*draws))
        results = self.results
        fixed = self._fixed_rows()
        results.update({ORACLE: Result(), CHOSEN: Result()})
        results.update({m.name: Result() for m in METHODS})
        if len(self.task.names) < 3:
            results[METHODS[1].name].skipped = 'the same with two modules'
        for method in METHODS:  # what cannot be merged, no weights can merge
            if method.fusion['type'] == 'ParameterMerge':
                results[method.name].skipped = results['uniform merge'].skipped
        for index, drawn in enumerate(draws):
            start = time.perf_counter()
            self._draw(index, drawn, fixed)
            print(f'draw {index + 1}/{len(draws)}: '
                  f'{time.perf_counter() - start:.0f} s', file=sys.stderr)

    def _fixed_rows(self) -> Dict[str, Tuple[Rows, Rows]]:
        """Training and test rows of what does not depend on the draw."""
        task, kept, self.pass_seconds = self.task, {}, {}
        samples = [task.pool[i] for i in self.union]
        alone = {f'single: {name}': [name] for name in task.names}
        for key, modules in {TRUNK: [], **alone}.items():
            self.results[key] = Result()
            with task.backbone.only(*modules):
                start = time.perf_counter()
                rows = task.rows(samples)
                spent = time.perf_counter() - start
                self.pass_seconds[key] = spent / len(samples)
                kept[key] = rows, task.rows(task.tested)
        for key, cfg in FIXED.items():
            self.results[key] = Result()
            task.backbone.set_fusion(cfg)
            try:
                kept[key] = task.rows(samples), task.rows(task.tested)
            except ValueError as error:  # parameters that cannot be merged
                self.results[key].skipped = str(error)
        return kept

    def _draw(self, index: int, drawn: List[int],
              fixed: Dict[str, Tuple[Rows, Rows]]) -> None:
        results = self.results
        places = torch.tensor([self.union.index(i) for i in drawn])
        train = {}
        for key, (rows, test) in fixed.items():
            keep = torch.isin(rows[2], places)
            train[key] = tuple(part[keep] for part in rows)
            results[key].add(accuracy(train[key], test))
        singles = [f'single: {name}' for name in self.task.names]
        alone = singles + [TRUNK]
        start = time.perf_counter()
        scores = held_out_scores({key: train[key] for key in alone},
                                 self.deals)
        # the trunk's features deal the halves as well
        scoring = (time.perf_counter() - start + len(drawn) * sum(
            self.pass_seconds[key] for key in alone), len(alone) * len(drawn))
        best = max(singles, key=lambda key: results[key].accuracy[-1])
        results[ORACLE].add(results[best].accuracy[-1])
        results[ORACLE].chosen.append(best)
        best = max(singles, key=scores.get)
        results[CHOSEN].add(results[best].accuracy[-1], *scoring)
        results[CHOSEN].chosen.append(best)
        for method in METHODS:
            if results[method.name].skipped:
                continue
            self._fuse(index, drawn, method)

    def _fuse(self, index: int, drawn: List[int], method: Method) -> None:
        """Fuse from a draw and judge."""
        task, args = self.task, self.args
        result = self.results[method.name]
        samples = [task.pool[i] for i in drawn]
        start = time.perf_counter()
        task.passes = task.backward = 0
        task.backbone.set_fusion(method.fusion)
        fusion = task.backbone.fusion
        run = task.as_runner(samples, seed=index)
        if method.scored:
            ScoreGatesHook(
                self.deals, num_extra_tokens=task.extra).before_train(run)
        if method.held_out:
            linear = method.fusion['type'] == 'LinearMoE'
            lr = args.linear_lr if linear else args.lr
            hook = HoldOutGatesHook(
                steps=args.steps,
                batches=-(-args.step_pictures // args.batch_size),
                optimizer=dict(type='Adam', lr=lr),
                num_extra_tokens=task.extra,
                keep_better=False)
            hook.before_train(run)
        costs = (time.perf_counter() - start, task.passes, task.backward)
        gates = fusion.gates(task.backbone.task).detach().mean(0).tolist()
        result.gates.append(dict(zip(task.names, gates)))
        result.add(accuracy(task.rows(samples), task.rows(task.tested)),
                   *costs)


# -------------------------------------------------------------------- report


def print_table(title: str, results: Dict[str, Result]) -> None:
    table = Table(title=title)
    table.add_column('method')
    for name in ('balanced accuracy', 'minus oracle', 'seconds', 'passes',
                 'backward'):
        table.add_column(name, justify='right')
    oracle = results[ORACLE].accuracy
    for name, result in results.items():
        if result.skipped:
            table.add_row(name, 'skipped')
            continue
        chosen = Counter(c.split(': ')[1] for c in result.chosen)
        names = ', '.join(f'{n} {c}x' for n, c in chosen.items())
        minus = [a - b for a, b in zip(result.accuracy, oracle)]
        table.add_row(f'{name}: {names}' if names else name,
                      spread(result.accuracy), spread(minus, '+'),
                      f'{mean(result.seconds):.1f}',
                      f'{mean(result.passes):.0f}',
                      f'{mean(result.backward):.0f}')
    console = table_console()
    console.print(table)
    for name, result in results.items():
        if result.skipped:
            console.print(f'{name}: {result.skipped}')


def measure(path: str, args: argparse.Namespace) -> Dict[str, Any]:
    """All figures of one config, printed and for the file."""
    start = time.perf_counter()
    cfg = read_config(path, args.cfg_options)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    task = FewShot(cfg, args.zoo, args.num_test, args.batch_size)
    bench = Bench(task, args)
    bench.run()
    seconds = round(time.perf_counter() - start, 1)
    print_table(
        f'{path}: {args.draws} draws of {args.num_train} of '
        f'{len(task.pool)} images, {len(task.tested)} test images; '
        f'hold-out: {args.steps} steps of {args.step_pictures} images, '
        f'Adam {args.lr:g}, LinearMoE {args.linear_lr:g}; {seconds:.0f} s',
        bench.results)
    methods = {
        name: dict(
            asdict(result),
            mean=mean(result.accuracy) if result.accuracy else None,
            deviation=stdev(result.accuracy)
            if len(result.accuracy) > 1 else None)
        for name, result in bench.results.items()
    }
    return dict(
        config=path,
        modules=task.names,
        num_pool=len(task.pool),
        num_train=args.num_train,
        num_test=len(task.tested),
        seconds=seconds,
        methods=methods)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    if args.out:  # not after minutes
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    MMLogger.get_current_instance().setLevel('ERROR')
    device = f'{platform.processor() or platform.machine()}, cpu'
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    report = dict(
        command=shlex.join(['python', *sys.argv]),
        commit=get_git_hash(digits=7),
        torch=torch.__version__,
        device=device,
        threads=torch.get_num_threads(),
        settings=vars(args),
        tasks=[])
    for path in args.configs:
        report['tasks'].append(measure(path, args))
        if args.out:  # after every config: what is done is kept
            write_atomic(Path(args.out), json.dumps(report, indent=1))


if __name__ == '__main__':
    run_cli(main)

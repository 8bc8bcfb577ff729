# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rank the modules of a zoo for a task before any training."""

# Comes first: it makes `_base_ = 'vim_mm::…'` and `'mmseg::…'` resolve.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import contextlib
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from rich.table import Table

from vim_mm.apis.ranking import Ranking, rank_modules
from vim_mm.report.evidence import agreement, usefulness
from vim_mm.utils.cli import run_cli, table_console, visible
from vim_mm.utils.config import add_cfg_options, read_config
from vim_mm.utils.messages import first_lines
from vim_mm.zoo import ZooError


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Score modules for the task of a config, before any '
        'training; see docs/ranking.md.')
    parser.add_argument('config', help='config of a downstream task')
    parser.add_argument(
        '--zoo', help='directory of the zoo (default: that of the config)')
    parser.add_argument(
        '--evidence',
        help='report.json of finished runs: how well do the scores agree?')
    parser.add_argument(
        '--fuse',
        action='store_true',
        help='look for weights of a fusion as well, in more passes (done with '
        '--evidence, too)')
    parser.add_argument(
        '--cache', help='folder of scores, shared with ScoreGatesHook')
    parser.add_argument(
        '--pictures',
        type=int,
        default=2000,
        help='training images to look at, at most (default: 2000)')
    parser.add_argument('--json', action='store_true', help='print JSON')
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Optional[List[str]] = None) -> None:
    args = parse_args(argv)
    # output of libraries is no part of the answer
    with contextlib.redirect_stdout(sys.stderr):
        ranking, metric, truth = ranked(args)
    found, whole = {}, {}
    if truth:
        found = agreement(ranking.scores, truth)
        whole = agreement(ranking.scores, truth, whole=True)
    if args.json:
        answer = dict(
            asdict(ranking),
            metric=metric,
            usefulness=truth,
            agreement={kind: asdict(each)
                       for kind, each in found.items()},
            agreement_whole={
                kind: asdict(each)
                for kind, each in whole.items()
            })
        print(json.dumps(_no_nan(answer), indent=2, ensure_ascii=False))
        return
    show_ranking(ranking, metric, truth)
    for title, each in (('modules', found), ('trunk and fusions, too',
                                             whole)):
        if each:
            show_agreement(title, metric, each)


def ranked(
        args: argparse.Namespace) -> Tuple[Ranking, str, Dict[str, float]]:
    """The ranking, and metric and usefulness that the evidence knows."""
    cfg = read_config(args.config, args.cfg_options)
    zoo = args.zoo or cfg.get('model', {}).get('backbone', {}).get('zoo')
    if zoo is None:
        raise ZooError(f'{args.config!r} names no zoo; give one with --zoo.')
    if args.pictures < 2:
        raise ZooError('--pictures must be 2 or more, to hold some out.')
    metric, truth = '', {}
    if args.evidence:
        metric, truth = usefulness(args.evidence, Path(args.config).stem)
    return rank_modules(cfg, zoo, args.pictures, args.fuse or bool(truth),
                        args.cache), metric, truth


def _no_nan(value: Any) -> Any:
    """NaN is no JSON."""
    if isinstance(value, dict):
        return {key: _no_nan(each) for key, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def show_ranking(ranking: Ranking, metric: str,
                 truth: Dict[str, float]) -> None:
    console = table_console()
    kinds = list(next(iter(ranking.scores.values())))
    table = Table('module', *kinds, 'noise', *([metric] if truth else []))
    table.columns[0].overflow = 'fold'
    for name, scores in ranking.scores.items():
        cells = [f'{scores[kind]:.3f}' for kind in kinds]
        cells.append(f'{ranking.noise[name]:.3f}')
        if truth:
            cells.append(f'{truth[name]:.3f}' if name in truth else '')
        table.add_row(name, *cells)
    console.print(table)
    console.print(f'{ranking.num_pictures} images, {ranking.num_rows} rows, '
                  f'{ranking.num_classes} classes, {ranking.passes} passes, '
                  f'{ranking.seconds} s. Larger is better, within a column; '
                  'noise is that of `ours` beside the frozen trunk.')
    console.print(f'Verdict: {ranking.verdict}.', markup=False,
                  highlight=False)  # yapf: disable
    for line in first_lines(f'not scored: {name}. {visible(why)}'
                            for name, why in ranking.skipped.items()):
        console.print(line, markup=False, highlight=False)


def show_agreement(title: str, metric: str, found: Dict[str, Any]) -> None:
    console = table_console()
    table = Table(f'agreement, {title}', 'Kendall tau', 'weighted tau',
                  'first', f'{metric} lost')
    for kind, each in found.items():
        table.add_row(kind, f'{each.tau:.2f}', f'{each.weighted_tau:.2f}',
                      each.top, f'{each.regret:.3f}')
    console.print(table)
    modules = next(iter(found.values())).modules
    console.print(f'Over {len(modules)} with known {metric}.')


if __name__ == '__main__':
    run_cli(main)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Mean and deviation of the demo's figures over several seeds.

    for seed in 0 1 2; do
        python tools/demo.py --seed $seed --work-dir work_dirs/demo-$seed
    done
    python benchmarks/seeds.py work_dirs/demo-*/report.json

A gain is the difference from the first row of its step within one run, so
that what a seed does to both rows cancels out.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import json
from pathlib import Path
from typing import Dict, List, Tuple

from rich.table import Table

from vim_mm.report.verdicts import spread
from vim_mm.utils.cli import run_cli, table_console

#: by step, task and metric, then method: a value for each report
Values = Dict[str, Dict[str, List[float]]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Compare seeds of the demo')
    parser.add_argument('reports', nargs='+', type=Path, help='report.json')
    return parser.parse_args()


def read(paths: List[Path]) -> Values:
    """Values of the steps that all reports have finished.

    Raises:
        ValueError: If the reports do not have the same rows there.
    """
    reports = [json.loads(path.read_text()) for path in paths]
    common = set.intersection(*({row['step'] for row in rows}
                                for rows in reports))
    values: Values = {}
    for row in (row for rows in reports for row in rows):
        if row['step'] in common:
            methods = values.setdefault(
                f"{row['step']}, {row['task']}, {row['metric']}", {})
            methods.setdefault(row['method'], []).append(row['value'])
    for step, methods in values.items():
        for method, found in methods.items():
            if len(found) != len(paths):
                raise ValueError(
                    f"{len(found)} of {len(paths)} reports have a row "
                    f"'{method}' of {step}; give finished ones of one "
                    'version.')
    return values


def cells(values: List[float], sign: str = '') -> Tuple[str, str]:
    """Mean and deviation, and the values themselves."""
    each = ' '.join(f'{value:{sign}.3f}' for value in values)
    return spread(values, sign), each


def main() -> None:
    args = parse_args()
    table = Table(title=f'{len(args.reports)} runs')
    for column in ('step', 'method', 'mean', 'runs', 'gain', 'gains'):
        table.add_column(column)
    for step, methods in read(args.reports).items():
        first = next(iter(methods.values()))
        for method, values in methods.items():
            gains = [b - a for a, b in zip(first, values)]
            table.add_row(step, method, *cells(values), *cells(gains, '+'))
        table.add_section()
    table_console().print(table)


if __name__ == '__main__':
    run_cli(main)

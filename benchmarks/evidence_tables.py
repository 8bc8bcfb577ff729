# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The evidence's verdicts and figures as text."""

import json
import re
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from vim_mm.utils.files import write_atomic

from evidence_rows import Runs, commits  # isort:skip


def tables(rows: Sequence[dict], verdicts: Mapping[str, dict]) -> str:
    """Verdicts and figures in Markdown."""
    lines = ['| claim | verdict | why |', '|---|---|---|']
    for claim, said in verdicts.items():
        lines.append(f"| ({claim}) {said['claim']} | **{said['verdict']}** | "
                     f"{said['reason']} |")
    lines += [
        '', '| claim | data, metric | method | seeds | mean ± deviation | '
        'against | difference | trained / stored / active, M | MACs, G |',
        '|---|---|---|---|---|---|---|---|---|'
    ]
    lines += map(_line, rows)
    return '\n'.join(lines)


def _line(row: Mapping[str, Any]) -> str:
    base = row['baseline'] or {}
    gain = ''
    if base:
        gain = f"{base['difference']:+.2f}" + _deviation(
            base['difference_spread'])
    costs = ' / '.join(f'{row[key] / 1e6:.2f}'
                       for key in ('trained', 'stored', 'active')
                       if key in row)
    if 'kept' in row:
        costs = f"{100 * row['kept']:.0f} % kept"
    macs = f"{row['macs'] / 1e9:.2f}" if 'macs' in row else ''
    same = ' (bit-identical)' if row.get('identical') else ''
    return (f"| {row['claim']} | {row['data']}, {row['metric']} | "
            f"{row['method']}{same} | {row['seeds']} | {row['mean']:.2f}"
            f"{_deviation(row['spread'])} | "
            f"{base.get('method', '')} | {gain} | {costs} | {macs} |")


def _deviation(spread: Optional[float]) -> str:
    return '' if spread is None else f' ± {spread:.2f}'


def fill(text: str, figures: str) -> str:
    """The README with its generated part replaced."""
    return re.sub(
        r'(?s)(<!-- figures -->\n).*(<!-- end -->)',
        lambda found: f'{found[1]}{figures}\n{found[2]}', text)


def publish(docs: Path, name: str, runs: Runs, verdicts: Mapping[str, dict],
            rows: Sequence[dict], command: str) -> None:
    """Write a page's figures as JSON, and into the page.

    Args:
        docs (Path): Folder of the evidence.
        name (str): Of the page.
        runs (dict): By seed.
        verdicts (dict): By claim.
        rows (Sequence[dict]): Figures, which get verdict, command, commit.
        command (str): What ran, ``{}`` for the seeds.
    """
    for row in rows:
        row.update(
            verdict=verdicts[row['claim']]['verdict'],
            command=command.format(' '.join(map(str, sorted(runs)))),
            commit=commits(runs))
    write_atomic(docs / f'{name}.json',
                 json.dumps(rows, indent=1, ensure_ascii=False) + '\n')
    page = docs / f'{name}.md'
    write_atomic(page, fill(page.read_text(), tables(rows, verdicts)))

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Report of a set of runs: one self-contained page and one JSON file."""

import base64
import html
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from vim_mm.utils.files import write_atomic

Gates = Dict[str, Dict[str, float]]

_STYLE = '''
:root{color-scheme:light;--ink:#1c2430;--soft:#5b6675;--line:#dde3ea;
--bar:#4477aa;--best:#0b6e4f}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);max-width:62rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0}h2{font-size:1.2rem;margin:2.2rem 0 .4rem;
border-top:1px solid var(--line);padding-top:1.2rem}
p,figcaption{color:var(--soft);margin:.3rem 0 .8rem}
table{border-collapse:collapse;margin:.6rem 0}
.wide{overflow-x:auto}
th,td{padding:.25rem .7rem;text-align:left;border-bottom:1px solid
var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft)}td.n{text-align:right;
font-variant-numeric:tabular-nums}
tr.best td{font-weight:700;color:var(--best)}
.bar{display:inline-block;height:.7rem;background:var(--bar);
border-radius:2px;vertical-align:middle}
.gates td{border:2px solid #fff;text-align:center;min-width:4.2rem;
padding:.1rem .4rem;font-size:.85rem}
.gates th{border:0;padding:.1rem .5rem;font-size:.85rem}
.images{display:flex;flex-wrap:wrap;gap:.7rem}
figure{margin:0}figure img{height:11rem;display:block;border-radius:4px}
figcaption{font-size:.8rem;max-width:16rem}
figure.chart{flex-basis:100%}figure.chart img{height:auto;max-width:100%}
figure.chart figcaption{max-width:none}
'''


@dataclass
class Row:
    """One measured value and its cost.

    Attributes:
        step (str): The step of the demo.
        task (str): What is learned, and its kind.
        method (str): What the row distinguishes within the step.
        metric (str): Name of the metric.
        value (float): Its value.
        n_train (int): Images learned from.
        n_test (int): Images behind the value.
        seconds (float): Wall time of the method.
        peak_mb (float): Peak memory of the method, in MB.
    """
    step: str
    task: str
    method: str
    metric: str
    value: float
    n_train: int
    n_test: int
    seconds: float
    peak_mb: float


@dataclass
class Step:
    """The part of a report for one step.

    Attributes:
        title (str): Heading.
        text (str): A few words on data and method.
        rows (list[Row]): Its numbers; the first row's metric is drawn.
        gates (dict, optional): Slot name to module name to weight.
        pictures (list[dict]): ``{file, caption}``, PNG files; with ``kind``
            ``'chart'`` in full width.
        seconds (float): Wall time of the whole step.
        ranked (bool): Whether its rows compete; the best is then bold.
    """
    title: str
    text: str
    rows: List[Row]
    gates: Optional[Gates] = None
    pictures: List[Dict[str, str]] = field(default_factory=list)
    seconds: float = 0.
    ranked: bool = True


def write_report(folder: str, title: str, intro: str,
                 steps: Sequence[Step]) -> None:
    """Write ``report.json`` and ``report.html`` into a folder.

    Args:
        folder (str): Where to write; images of steps are relative to it.
        title (str): Title of the page.
        intro (str): What was run, on what.
        steps (Sequence[Step]): Finished steps, in order.
    """
    rows = [asdict(row) for step in steps for row in step.rows]
    folder = Path(folder)
    write_atomic(folder / 'report.json', json.dumps(rows, indent=1) + '\n')
    body = '\n'.join(_section(folder, step) for step in steps)
    page = (f'<!doctype html><html lang="en"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width">'
            f'<title>{html.escape(title)}</title><style>{_STYLE}</style>'
            f'<h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>'
            f'{body}</html>\n')
    write_atomic(folder / 'report.html', page)


def _section(folder: Path, step: Step) -> str:
    parts = [
        f'<section><h2>{html.escape(step.title)}</h2>'
        f'<p>{html.escape(step.text)} '
        f'This step took {step.seconds:.0f} s.</p>',
        _table(step.rows, step.ranked)
    ]
    if step.gates:
        parts.append(_heat_map(step.gates))
    if step.pictures:
        figures = ''.join(_figure(folder, p) for p in step.pictures)
        parts.append(f'<div class="images">{figures}</div>')
    return ''.join(parts) + '</section>'


def _table(rows: Sequence[Row], ranked: bool) -> str:
    top = max((row.value for row in rows), default=0) if ranked else 0
    lines = [
        '<div class="wide"><table><tr><th>method<th>metric<th>value<th>'
        '<th>train<th>test<th>seconds<th>peak MB</tr>'
    ]
    for row in rows:
        width = 7 * row.value / top if top > 0 else 0
        lines.append(
            f'<tr{" class=best" if ranked and row.value == top else ""}>'
            f'<td>{html.escape(row.method)}<td>{html.escape(row.metric)}'
            f'<td class=n>{row.value:.3f}<td><span class=bar '
            f'style="width:{max(width, 0):.2f}rem"></span>'
            f'<td class=n>{row.n_train}<td class=n>{row.n_test}'
            f'<td class=n>{row.seconds:.0f}<td class=n>{row.peak_mb:.0f}</tr>')
    return ''.join(lines) + '</table></div>'


def _heat_map(gates: Gates) -> str:
    modules = list(dict.fromkeys(m for row in gates.values() for m in row))
    lines = [
        '<p>Gates of the last method, per layer and branch (rows) and '
        'module (columns).</p><div class="wide"><table class=gates><tr><th>'
    ] + [f'<th>{html.escape(m)}' for m in modules] + ['</tr>']
    for slot, row in gates.items():
        lines.append(f'<tr><th>{html.escape(slot)}')
        for module in modules:
            if module not in row:  # it does not sit in this slot
                lines.append('<td>')
                continue
            weight = row[module]
            shade = min(max(weight, 0.), 1.)
            ink = '#fff' if shade > .55 else '#1c2430'
            lines.append(f'<td style="background:rgba(11,110,79,{shade:.2f});'
                         f'color:{ink}">{weight:.2f}')
        lines.append('</tr>')
    return ''.join(lines) + '</table></div>'


def _figure(folder: Path, picture: Dict[str, str]) -> str:
    data = base64.b64encode((folder / picture['file']).read_bytes()).decode()
    caption = html.escape(picture['caption'])
    kind = html.escape(picture.get('kind', 'image'))
    return (f'<figure class="{kind}"><img alt="{caption}" '
            f'src="data:image/png;base64,{data}">'
            f'<figcaption>{caption}</figcaption></figure>')

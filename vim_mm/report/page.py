# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Report of a set of runs: one self-contained page and one JSON file."""

import html
import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from vim_mm.utils.files import write_atomic
from .figure_parts import all_zero, chart, gallery, heat_map
from .origin import docs_folder
from .steps import Gates, Row, Step
from .style import STYLE
from .verdicts import ONE_SEED, Claim, by_method, claims, gain, spread

#: What metrics and signs mean, where a page shows them.
METRICS = {
    'accuracy': 'share of the images whose class is found',
    'AP50': 'average precision of boxes: how many are found, and how few '
    'others; a box counts if it overlaps the true one by half',
    'AP': 'average precision of boxes, mean over overlaps with the true one '
    'of 50 to 95 %',
    'mIoU': 'overlap of found and true pixels divided by their union, mean '
    'over the classes',
}
#: In place of a verdict on modules.
NO_MODULE_RUNS = (
    'All weights are zero in the end, so no module runs: what differs from '
    'the frozen trunk is how long the head has learned.')
_SPREAD = {
    '±': 'in the tables the standard deviation over the seeds; of a '
    'difference its standard error, seed by seed'
}


@dataclass
class Page:
    """What is the same for all steps of a report.

    Attributes:
        title (str): Title of the page.
        intro (str): What was run, on what.
        terms (dict[str, str]): A word, and what it means in a line.
        docs (list[str]): Pages of the documentation to read on.
    """
    title: str
    intro: str
    terms: Dict[str, str] = field(default_factory=dict)
    docs: List[str] = field(default_factory=list)


def write_report(folder: Path, page: Page, steps: Sequence[Step]) -> None:
    """Write ``report.json`` and ``report.html`` into a folder.

    Args:
        folder (Path): Where to write; images of steps are relative to it.
        page (Page): Title, introduction and terms.
        steps (Sequence[Step]): Finished steps, in order.
    """
    folder = Path(folder)
    rows = [asdict(row) for step in steps for row in step.rows]
    write_atomic(folder / 'report.json', json.dumps(rows, indent=1) + '\n')
    title = html.escape(page.title)
    body = '\n'.join([
        f'<h1>{title}</h1><p>{html.escape(page.intro)}</p>',
        _origin(folder, page, steps),
        _headline(steps),
        *(_section(folder, step, len(_origins(steps)) > 1)
          for step in steps),
        _terms(page, steps)
    ])
    text = (f'<!doctype html><html lang="en"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width,'
            f'initial-scale=1"><title>{title}</title>'
            f'<style>{STYLE}</style>{body}</html>\n')
    write_atomic(folder / 'report.html', text)


# ------------------------------------------------------------------ headline


def _headline(steps: Sequence[Step]) -> str:
    """The claims of all steps, under the question that they answer."""
    questions: Dict[str, List[Claim]] = {}
    for step in steps:
        if step.contrast is not None:
            found = questions.setdefault(step.contrast.what, [])
            found += [
                _without_modules(claim, step.gates)
                for claim in claims(step.rows, step.contrast)
            ]
    return ''.join(
        f'<div class=claims><h3>{html.escape(what)}</h3>'
        f'{"".join(map(_claim, found))}{_noise(found)}</div>'
        for what, found in questions.items() if found)


def _without_modules(claim: Claim, gates: Optional[Gates]) -> Claim:
    """The claim, which says so where no module runs in the end.

    Gates are of one seed, so of several nothing is known.
    """
    if claim.gain.seeds > 1 or not gates or not all_zero(gates):
        return claim
    return replace(claim, verdict=NO_MODULE_RUNS)


def _noise(found: Sequence[Claim]) -> str:
    alone = all(claim.gain.seeds == 1 for claim in found)
    return f'<p>{ONE_SEED}</p>' * alone


def _claim(claim: Claim) -> str:
    *others, result = claim.bars
    top = max(*claim.bars.values(), 1e-9)
    kind = 'up' * claim.gain.better or 'down' * claim.gain.worse
    seeds = f'{claim.gain.seeds} seed{"s" * (claim.gain.seeds > 1)}'
    bars = ''.join(
        f'<b>{html.escape(name)}</b><div><span'
        f'{" class=top" * (name == result)} style="width:'
        f'{100 * max(value, 0) / top:.1f}%"></span></div><i>{value:.3f}</i>'
        for name, value in claim.bars.items())
    return (f'<div class=claim><p><b>{html.escape(claim.task)}</b>, '
            f'{html.escape(claim.metric)}: <b class="{kind}">{claim.gain}</b> '
            f'over {html.escape(others[0])} ({claim.n_test} test images, '
            f'{seeds})</p><div class=bars>{bars}</div>'
            f'{_sentence(claim.verdict)}</div>')


def _sentence(text: str) -> str:
    return f'<p>{html.escape(text)}</p>' * bool(text)


def _origin(folder: Path, page: Page, steps: Sequence[Step]) -> str:
    python = ['python'] * sys.argv[0].endswith('.py')
    command = ' '.join([*python, sys.argv[0], shlex.join(sys.argv[1:])])
    command = command.strip()
    said = [html.escape(each) for each in _origins(steps)]
    if len(said) > 1:
        said = ['commits, dates or machines differ: see the steps']
    said.append(f'command: <code>{html.escape(command)}</code>')
    said += [_link(folder, name) for name in page.docs]
    return f'<p class=origin>{"; ".join(said)}</p>'


def _origins(steps: Sequence[Step]) -> List[str]:
    return list(dict.fromkeys(s.origin for s in steps if s.origin))


def _link(folder: Path, name: str) -> str:
    """A page of the documentation, as a link where there is one."""
    path = docs_folder() / name
    if not path.is_file():
        return f'docs/{html.escape(name)}'
    target = os.path.relpath(path, folder.resolve())
    return f'<a href="{html.escape(target)}">docs/{html.escape(name)}</a>'


def _terms(page: Page, steps: Sequence[Step]) -> str:
    shown = {row.metric for step in steps for row in step.rows}
    terms = dict(page.terms)
    terms.update((k, text) for k, text in METRICS.items() if k in shown)
    if any(_several_seeds(step) for step in steps):
        terms.update(_SPREAD)
    lines = ''.join(f'<dt>{html.escape(word)}<dd>{html.escape(text)}'
                    for word, text in terms.items())
    return f'<section><h2>Words</h2><dl>{lines}</dl></section>' * bool(terms)


# ------------------------------------------------------------------ sections


def _section(folder: Path, step: Step, origins_differ: bool) -> str:
    took = [f'This step took {step.seconds:.0f} s'] * bool(step.seconds)
    origin = [html.escape(step.origin)] * origins_differ * bool(step.origin)
    parts = [
        f'<section><h2>{html.escape(step.title)}</h2>'
        f'<p>{html.escape(step.text)}</p>'
        f'<p class=origin>{"; ".join(took + origin)}</p>'
    ]
    if step.rows:
        parts.append(_table(step))
    if step.made:
        parts.append(_made(step))
    parts += [gallery(folder, each) for each in step.galleries]
    if step.gates:
        parts.append(heat_map(step.gates))
    parts += [chart(folder, each) for each in step.charts]
    return ''.join(parts) + '</section>'


def _table(step: Step) -> str:
    """A row for each task, method and metric; seeds are averaged."""
    groups: Dict[tuple, List[Row]] = {}
    for row in step.rows:
        key = row.task, row.method, row.metric
        groups.setdefault(key, []).append(row)
    means = {key: _mean([r.value for r in own]) for key, own in groups.items()}
    best = max(means.values()) if step.ranked and means else None
    gains = _gains(step) if _several_seeds(step) else {}
    several = len({row.task for row in step.rows}) > 1
    heads = ['task'] * several + ['method', 'metric', 'value', '']
    heads += ['gain', 'seeds'] * bool(gains)
    heads += ['train', 'test', 'seconds', 'peak MB']
    lines = ['<div class="wide"><table><tr>', *(f'<th>{h}' for h in heads)]
    for key, own in groups.items():
        task, method, metric = map(html.escape, key)
        width = 7 * means[key] / best if best and best > 0 else 0
        top = step.ranked and means[key] == best
        lines += [
            f'<tr{" class=best" * top}>', f'<td>{task}' * several,
            f'<td>{method}<td>{metric}'
            f'<td class=n>{spread([row.value for row in own])}<td>'
            f'<span class=bar style="width:{max(width, 0):.2f}rem"></span>'
        ]
        if gains:
            lines.append(f'<td class=n>{gains.get(key[:2], "")}'
                         f'<td class=n>{len(own)}')
        lines += [
            f'<td class=n>{own[0].n_train}<td class=n>{own[0].n_test}'
            f'<td class=n>{_mean([row.seconds for row in own]):.0f}'
            f'<td class=n>{_mean([row.peak_mb for row in own]):.0f}'
        ]
    return ''.join(lines) + '</table></div>'


def _several_seeds(step: Step) -> bool:
    return len({row.seed for row in step.rows}) > 1


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _gains(step: Step) -> Dict[tuple, str]:
    """By task and method, the difference from the baseline."""
    found = {}
    for task in {row.task for row in step.rows}:
        methods = by_method([row for row in step.rows if row.task == task])
        base = methods.get(step.contrast.against) if step.contrast else None
        for method, values in methods.items():
            if base and values is not base:
                found[task, method] = str(gain(values, base) or '')
    return found


def _made(step: Step) -> str:
    lines = [
        '<div class="wide"><table><tr><th>what<th>files<th>seconds'
        '<th>peak MB'
    ] + [
        f'<tr><td>{html.escape(each.name)}<td class=n>{each.files}'
        f'<td class=n>{each.seconds:.0f}<td class=n>{each.peak_mb:.0f}'
        for each in step.made
    ]
    return ''.join(lines) + '</table></div>'

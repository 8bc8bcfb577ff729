# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Heat maps, grids of images and charts as HTML."""

import base64
import html
from pathlib import Path
from typing import Dict, List

import numpy as np

from .steps import TRUTH, Answer, Chart, Gallery, Gates
from .style import shade

#: Columns of a grid.
SHOWN = 6
_MARKS = {True: ' <b class=up>✓</b>', False: ' <b class=down>✗</b>', None: ''}


def evenly_spaced(length: int, num: int) -> List[int]:
    """``num`` indices at even distances over ``length`` things."""
    return np.linspace(0, length - 1, min(num, length)).astype(int).tolist()


# --------------------------------------------------------------------- gates


def all_zero(gates: Gates) -> bool:
    """Whether no module runs."""
    return not any(w for row in gates.values() for w in row.values())


def heat_map(gates: Gates) -> str:
    """A line for each module, a column for each slot."""
    modules = list(dict.fromkeys(m for row in gates.values() for m in row))
    weights = [abs(w) for row in gates.values() for w in row.values()]
    largest = max([1., *weights])
    lines = [
        '<p>Weights of the modules (rows) in each layer and branch of the '
        'trunk (columns) at the end: green adds, red subtracts, 1 is the '
        'strength that a module was trained at.'
        f'{" All are zero: no module runs." * all_zero(gates)}</p>'
        '<div class="wide"><table class=gates><tr><th>',
        *(f'<th class=slot>{html.escape(slot)}' for slot in gates)
    ]
    for module in modules:
        lines.append(f'<tr><th>{html.escape(module)}')
        for row in gates.values():
            if module not in row:  # it does not sit in this slot
                lines.append('<td class=none>')
                continue
            back, ink = shade(row[module], largest)
            lines.append(f'<td style="background:{back};color:{ink}">'
                         f'{round(row[module], 2) + 0.:.2f}')
    return ''.join(lines) + '</table></div>'


# -------------------------------------------------------------------- images


def gallery(folder: Path, shown: Gallery) -> str:
    """A grid: an image a column, a method a row, the truth above."""
    cells: Dict[str, Dict[str, Answer]] = {}
    for answer in shown.answers:
        cells.setdefault(answer.method, {})[answer.image] = answer
    if not cells:
        return ''
    images = columns(shown)
    lines = [f'<h3>{html.escape(shown.title)}</h3>' * bool(shown.title),
             _legend(shown), '<div class="wide"><table class=grid>']
    for method in sorted(cells, key=lambda name: name != TRUTH):
        lines.append(f'<tr><th>{html.escape(method)}')
        lines += [
            f'<td>{_cell(folder, cells[method].get(image))}'
            for image in images
        ]
    return ''.join(lines) + '</table></div>'


def columns(shown: Gallery) -> List[str]:
    """The images of a grid: right and wrong answers of the last method.

    Of each as many, as far as there are; in the order of the images.
    """
    last = [a for a in shown.answers if a.method == shown.methods()[-1]]
    wrong = [a.image for a in last if a.right is False]
    right = [a.image for a in last if a.right is not False]
    num_wrong = min(len(wrong), max(SHOWN // 2, SHOWN - len(right)))
    kept = {wrong[i] for i in evenly_spaced(len(wrong), num_wrong)}
    kept |= {
        right[i]
        for i in evenly_spaced(len(right), SHOWN - num_wrong)
    }
    return [a.image for a in last if a.image in kept]


def _cell(folder: Path, answer: Answer) -> str:
    if answer is None:
        return ''
    caption = html.escape(answer.caption)
    image = ''
    if answer.file:
        image = f'<img alt="{caption}" src="{_data(folder / answer.file)}">'
    return f'{image}{caption}{_MARKS[answer.right]}'


def _legend(shown: Gallery) -> str:
    if not shown.legend:
        return ''
    entries = ''.join(
        f'<span><i style="background:rgb({",".join(map(str, colour))})"></i>'
        f'{html.escape(name)}</span>'
        for name, colour in shown.legend.items())
    return f'<div class=legend>{entries}</div>'


def chart(folder: Path, shown: Chart) -> str:
    """A figure in full width."""
    caption = html.escape(shown.caption)
    return (f'<figure><img alt="{caption}" '
            f'src="{_data(folder / shown.file)}">'
            f'<figcaption>{caption}</figcaption></figure>')


def _data(path: Path) -> str:
    """An image as part of the page."""
    kind = 'png' if path.suffix == '.png' else 'jpeg'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'data:image/{kind};base64,{data}'

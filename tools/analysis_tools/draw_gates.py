# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Draw a run's gates: ``python tools/analysis_tools/draw_gates.py RUN``."""

# Comes first: it prepares the stack as every tool does.
import vim_mm  # noqa: F401,I001 isort:skip

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import matplotlib

from vim_mm.report.figures import (check_format, find_scalars, ink,
                                   read_scalars, save_figure)
from vim_mm.utils.cli import run_cli

matplotlib.use('Agg')  # before pyplot: no window is opened
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

PREFIX = 'gates/'
#: Points that are marked, since a line hardly shows them.
FEW = 3
#: Where a module does not sit, a blank.
NOTHING = float('nan')
#: Gates of one step: slot to module to weight.
Gates = Dict[str, Dict[str, float]]


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draw the gates that GateLogHook has logged: lines over '
        'the iterations, and a heat map of where they ended.')
    parser.add_argument(
        'run', help='work_dir of a run, or a vis_data/scalars.json of it')
    parser.add_argument('--out', default='gates.png', help='image to write')
    return parser.parse_args(argv)


def read_gates(path: Path) -> Dict[int, Gates]:
    """Gates by iteration, in the order in which they were logged.

    Raises:
        ValueError: If the file holds none, or is of another kind.
    """
    steps: Dict[int, Gates] = {}
    for record in read_scalars(path):
        for key, weight in record.items():
            if key.startswith(PREFIX):
                slot, module = key[len(PREFIX):].rsplit('/', 1)
                gates = steps.setdefault(record['step'], {})
                gates.setdefault(slot, {})[module] = weight
    if not steps:
        raise ValueError(
            f"'{path}' holds no gates: either the run weighs no modules, or "
            "its `custom_hooks` lack dict(type='vim_mm.GateLogHook'); add it.")
    return steps


def draw(steps: Dict[int, Gates], out: Path) -> None:
    """Write the image.

    Args:
        steps (dict[int, Gates]): From :func:`read_gates`.
        out (Path): Where to; its suffix names the format.

    Raises:
        ValueError: If it names none that can be written.
    """
    check_format(out)
    last = steps[max(steps)]
    modules = list(dict.fromkeys(m for row in last.values() for m in row))
    height = max(4., 1.6 + 0.24 * len(last))
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(8 + 0.5 * len(modules), height),
        width_ratios=(4, 1.6 + 0.5 * len(modules)),
        layout='constrained')
    draw_lines(left, steps, modules)
    draw_map(right, last, modules)
    save_figure(figure, out)
    plt.close(figure)


def draw_lines(axes: Axes, steps: Dict[int, Gates],
               modules: List[str]) -> None:
    """A thick line for each module's mean over slots, a thin one a slot."""
    x = sorted(steps)
    slots = list(steps[x[-1]])
    # few points make no line that is seen
    marker = 'o' if len(x) <= FEW else None
    for index, module in enumerate(modules):
        rows = [[steps[step].get(slot, {}).get(module, NOTHING)
                 for slot in slots] for step in x]
        color = plt.get_cmap('tab10')(index % 10)
        axes.plot(
            x, rows, color=color, alpha=0.2, linewidth=0.7, marker=marker)
        axes.plot(
            x, [mean(row) for row in rows],
            color=color,
            linewidth=2.5,
            marker=marker,
            label=module)
    axes.axhline(0, color='gray', linewidth=0.7)
    axes.set(
        xlabel='iteration',
        ylabel='gate',
        title='every slot (thin) and the mean over slots')
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc='best', fontsize='small')
    axes.grid(alpha=0.3)


def mean(row: List[float]) -> float:
    """Of the slots in which a module sits, or sat then."""
    known = [value for value in row if value == value]
    return sum(known) / len(known) if known else NOTHING


def draw_map(axes: Axes, gates: Gates, modules: List[str]) -> None:
    """The gates at the end, a row a slot and a column a module."""
    values = [[row.get(module, NOTHING) for module in modules]
              for row in gates.values()]
    low, high = limits([list(row.values()) for row in gates.values()])
    image = axes.imshow(
        values,
        aspect='auto',
        cmap='RdBu_r' if low < 0 else 'viridis',
        vmin=low,
        vmax=high)
    axes.set_xticks(range(len(modules)), modules, rotation=30, ha='right')
    axes.set_yticks(range(len(gates)), list(gates), fontsize='small')
    axes.set_title('at the end')
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value != value:  # the module does not sit there
                continue
            axes.text(
                column,
                row,
                f'{value:.2f}',
                ha='center',
                va='center',
                fontsize=7,
                color=ink(image.to_rgba(value)))
    axes.figure.colorbar(image, ax=axes, shrink=0.6)


def limits(values: List[List[float]]) -> Tuple[float, float]:
    """Range of the colours: from zero, or around it if some are negative."""
    numbers = [value for row in values for value in row]
    largest = max(1., *map(abs, numbers))
    return (-largest if min(numbers) < 0 else 0.), largest


def main() -> None:
    args = parse_args()
    steps = read_gates(find_scalars(Path(args.run)))
    draw(steps, Path(args.out))
    print(f'{args.out}: {len(steps)} records, the last of iteration '
          f'{max(steps)}.')


if __name__ == '__main__':
    run_cli(main)

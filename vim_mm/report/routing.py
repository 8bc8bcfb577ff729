# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Figures of how tasks use the experts of a model."""

import math
import re
from pathlib import Path
from typing import Any, Dict, List, Optional

from matplotlib import colormaps
from matplotlib.figure import Figure
from mmengine.runner import CheckpointLoader
from torch import Tensor

from vim_mm.models.moe.moe_file import read_moe
from vim_mm.models.moe.statistics import saved_usage
from vim_mm.models.moe.surgery import Usage
from vim_mm.utils.checkpoint_form import check_whole
from vim_mm.utils.messages import InputError, short
from .figures import check_format, find_scalars, read_scalars, save_figure

#: the information of one layer among the scalars
_LAYER = re.compile('routing/(.+)/information')
#: layers side by side
_COLUMNS = 4


def read_usage(checkpoint: Path) -> Usage:
    """How often experts ran, as a checkpoint or a moe file says.

    Args:
        checkpoint (Path): A checkpoint of a model with ``routing``, or of a
            run with a RoutingLogHook; or a ``.safetensors`` file of a trunk.

    Raises:
        ValueError: If it does not say.
    """
    if checkpoint.suffix == '.safetensors':
        usage = read_moe(str(checkpoint)).usage
    else:
        loaded = CheckpointLoader.load_checkpoint(str(checkpoint), 'cpu')
        check_whole(loaded, str(checkpoint))
        usage = saved_usage({
            **loaded.get('state_dict', {}),
            **_rows(loaded.get('routing'))
        })
    if not usage:
        raise ValueError(
            f"'{checkpoint}' does not say how experts are used; give the "
            "model `routing=dict(type='vim_mm.MutualInformation')`, or add "
            "dict(type='vim_mm.RoutingLogHook') to `custom_hooks`.")
    return usage


def _rows(routing: Any) -> Dict[str, Tensor]:
    """What a hook has noted, as far as it is tensors by name."""
    rows = routing if isinstance(routing, dict) else {}
    return {
        key: value
        for key, value in rows.items() if isinstance(value, Tensor)
    }


def read_information(run: Path) -> Dict[int, Dict[str, float]]:
    """I(T;E) of each layer by iteration; of a run, or its scalars.json.

    Where layers were not logged, their mean stands for all.

    Raises:
        ValueError: If it was not logged.
    """
    path = find_scalars(run)
    steps = {}
    for record in read_scalars(path):
        if 'routing/information' in record:
            found = [(_LAYER.fullmatch(key), record[key]) for key in record]
            if type(record.get('step')) is not int or not all(
                    isinstance(value, (int, float)) for value in (
                        record['routing/information'],
                        *(value for match, value in found if match))):
                raise InputError(f"'{path}' is no scalars.json of a run: the "
                                 f'record {short(record)} has no numbers.')
            steps[record['step']] = {
                match[1]: value
                for match, value in found if match
            } or {'all layers': record['routing/information']}
    if not steps:
        raise ValueError(
            f"'{path}' holds no information of tasks and experts; add "
            "dict(type='vim_mm.RoutingLogHook') to `custom_hooks` of a run "
            'of several tasks.')
    return steps


def draw_usage(usage: Usage, out: Path) -> None:
    """A heat map per layer: tasks by experts.

    Args:
        usage (Usage): By layer and task, how often each expert ran.
        out (Path): Where to; its suffix names the format.

    Raises:
        ValueError: If it names none that can be written.
    """
    check_format(out)
    tasks = list(dict.fromkeys(t for layer in usage.values() for t in layer))
    widest = max(len(row) for rows in usage.values() for row in rows.values())
    columns = min(_COLUMNS if widest <= 32 else 2, len(usage))
    lines = math.ceil(len(usage) / columns)
    figure = Figure(
        figsize=(1.5 + columns * (2. + .05 * widest),
                 .8 + lines * (.55 + .28 * len(tasks))),
        layout='constrained')
    panels = figure.subplots(lines, columns, squeeze=False)
    largest = max(
        float(_shares(row).max()) for rows in usage.values()
        for row in rows.values())
    for axes in panels.flat:
        axes.set_visible(False)
    for index, (axes, layer) in enumerate(zip(panels.flat, usage)):
        axes.set_visible(True)
        image = axes.imshow(
            _table(usage, layer, tasks),
            aspect='auto',
            cmap='viridis',
            interpolation='nearest',
            vmin=0,
            vmax=largest)
        axes.set_title(layer, fontsize='small')
        left = index % columns == 0
        axes.set_yticks(range(len(tasks)) if left else [], tasks * left)
        axes.tick_params(labelsize='small')
        axes.xaxis.get_major_locator().set_params(integer=True)
        if index >= len(usage) - columns:
            axes.set_xlabel('expert', fontsize='small')
    bar = figure.colorbar(image, ax=panels)
    bar.ax.tick_params(labelsize='small')
    bar.set_label("share of a task's choices", fontsize='small')
    save_figure(figure, out)


def _table(usage: Usage, layer: str, tasks: List[str]) -> List[List[float]]:
    """Rows of one width; blank where a task does not know an expert."""
    rows = {task: _shares(row) for task, row in usage[layer].items()}
    width = max(map(len, rows.values()))
    return [[
        float(rows[task][e])
        if task in rows and e < len(rows[task]) else float('nan')
        for e in range(width)
    ] for task in tasks]


def _shares(row: Tensor) -> Tensor:
    return row / row.sum().clamp(min=1e-12)


def draw_information(steps: Dict[int, Dict[str, float]],
                     out: Path,
                     num_tasks: Optional[int] = None) -> None:
    """I(T;E) over the iterations, of every layer and their mean.

    Args:
        steps (dict): From :func:`read_information`.
        out (Path): Where to; its suffix names the format.
        num_tasks (int, optional): T, whose logarithm is the largest value
            possible, drawn as a line. Defaults to None.

    Raises:
        ValueError: If it names no format that can be written.
    """
    check_format(out)
    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    x = sorted(steps)
    layers = list(steps[x[-1]])
    marker = 'o' if len(x) == 1 else None
    for index, layer in enumerate(layers):
        axes.plot(
            x, [steps[step].get(layer, float('nan')) for step in x],
            color=colormaps['viridis'](.9 * index / len(layers)),
            linewidth=1,
            marker=marker,
            label=layer if layer in (layers[0], layers[-1]) else None)
    mean = [sum(steps[step].values()) / len(steps[step]) for step in x]
    axes.plot(
        x, mean, color='black', linewidth=2.5, marker=marker, label='mean')
    if num_tasks is not None:
        axes.axhline(
            math.log(num_tasks),
            color='gray',
            linestyle='--',
            label=f'log {num_tasks}, each expert has one task')
    axes.set(
        xlabel='iteration',
        ylabel='I(T;E) in nats',
        title='mutual information of tasks and experts')
    axes.set_ylim(bottom=0)
    axes.legend(loc='best', fontsize='small')
    axes.grid(alpha=.3)
    save_figure(figure, out)

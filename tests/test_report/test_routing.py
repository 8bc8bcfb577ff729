# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Figures show what checkpoints and scalars say of routing."""

import importlib.util
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Dict, List

import numpy as np
import pytest
import torch
from _routing import TASKS, bound, run, tokens, trunk
from matplotlib.figure import Figure
from mmengine.config import ConfigDict
from torch import nn

from vim_mm.models.moe import save_moe
from vim_mm.models.moe.statistics import RoutingStatistics
from vim_mm.registry import MODELS
from vim_mm.report import routing as figures

TOOL = Path(__file__).parents[2] / 'tools/analysis_tools/draw_routing.py'


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('draw_routing', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> List[Figure]:
    found: List[Figure] = []
    monkeypatch.setattr(figures, 'save_figure',
                        lambda figure, out: found.append(figure))
    return found


def used() -> tuple:
    """A trunk, and statistics of a pass of two of its tasks."""
    model = trunk()
    routing = bound(model)
    for step, task in enumerate('ab'):
        run(model, routing, task, tokens(step))
    return model, routing


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(
        first[layer].keys() == rows.keys() and all(
            torch.equal(first[layer][task], row)
            for task, row in rows.items()) for layer, rows in second.items())


def saved(kind: str, folder: Path) -> tuple:
    """A file that says how experts are used, and what it says."""
    model, routing = used()
    path = folder / 'x.pth'
    if kind == 'model':
        whole = nn.ModuleDict(dict(backbone=model, routing=routing))
        torch.save(dict(state_dict=whole.state_dict()), path)
    elif kind == 'hook':
        torch.save(
            dict(state_dict=model.state_dict(), routing=routing.state_dict()),
            path)
    else:
        cfg = dict(
            type='vim_mm.MoEDaViT',
            arch=dict(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4),
            tasks=TASKS,
            num_experts=4,
            k=2)
        davit = MODELS.build(cfg)
        routing = RoutingStatistics()
        routing.bind(davit)
        for task in 'ab':
            davit.eval()
            for layer in davit.modules():
                if hasattr(layer, 'select_task'):
                    layer.select_task(task)
            with routing.record(davit) as seen, torch.no_grad():
                davit(torch.randn(1, 3, 64, 64))
            routing.update(seen)
        path = path.with_suffix('.safetensors')
        save_moe(davit, ConfigDict(cfg), path, routing.usage())
    return path, routing.usage()


@pytest.mark.parametrize('kind', ['model', 'hook', 'moe'])
def test_usage_of_files(kind: str, tmp_path: Path) -> None:
    path, usage = saved(kind, tmp_path)
    found = figures.read_usage(path)
    assert equal(found, usage)
    assert all(list(rows) == ['a', 'b'] for rows in found.values())
    figures.draw_usage(found, tmp_path / 'new' / 'usage.png')
    assert (tmp_path / 'new' / 'usage.png').stat().st_size > 5000


def test_heat_maps_hold_the_numbers(drawn: List[Figure]) -> None:
    usage = {
        'x.0': dict(a=torch.tensor([1., 3.]), b=torch.tensor([2., 2.])),
        'x.1': dict(a=torch.tensor([4., 0.]), new=torch.tensor([1., 1., 2.])),
    }
    figures.draw_usage(usage, Path('x.png'))
    first, second = (
        axes for axes in drawn[0].axes if axes.get_visible() and axes.images)
    assert [first.get_title(), second.get_title()] == ['x.0', 'x.1']
    nan = float('nan')
    np.testing.assert_equal(
        first.images[0].get_array().filled(nan),
        [[.25, .75], [.5, .5], [nan, nan]])
    np.testing.assert_equal(
        second.images[0].get_array().filled(nan),
        [[1, 0, nan], [nan] * 3, [.25, .25, .5]])
    assert [label.get_text() for label in first.get_yticklabels()
            ] == ['a', 'b', 'new']
    assert first.images[0].get_clim() == second.images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(('layers', 'experts'), [(1, 4), (5, 8), (6, 64)])
def test_any_number_of_layers(layers: int, experts: int,
                              drawn: List[Figure]) -> None:
    usage = {f'x.{i}': dict(a=torch.rand(experts)) for i in range(layers)}
    figures.draw_usage(usage, Path('x.png'))
    shown = [a for a in drawn[0].axes if a.get_visible() and a.images]
    assert len(shown) == layers


def test_curves_hold_the_numbers(drawn: List[Figure]) -> None:
    steps = {10: dict(x=.1, y=.3), 20: dict(x=.5, y=.9)}
    figures.draw_information(steps, Path('x.png'), 3)
    axes, = drawn[0].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    assert list(lines['x']) == [.1, .5] and list(lines['y']) == [.3, .9]
    assert lines['mean'] == pytest.approx([.2, .7])
    assert list(lines['log 3, each expert has one task']) == [
        pytest.approx(math.log(3))
    ] * 2


def scalars(folder: Path, records: List[dict]) -> Path:
    path = folder / '20250101_000000/vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(r) + '\n' for r in records))
    return path


RECORDS: List[Dict[str, float]] = [
    {'loss': 1., 'step': 1},
    {'routing/information': .2, 'routing/x.0/information': .1,
     'routing/x.1/information': .3, 'routing/x.0/busiest': .9, 'step': 2},
]


def test_a_run_gives_both_figures(tmp_path: Path, tool: ModuleType) -> None:
    path = scalars(tmp_path, RECORDS)
    checkpoint, _ = saved('model', tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(checkpoint))
    assert figures.read_information(tmp_path) == {2: {'x.0': .1, 'x.1': .3}}
    mean = [{'routing/information': .2, 'step': 2}]
    assert figures.read_information(scalars(tmp_path / 'mean', mean)) == {
        2: {'all layers': .2}
    }
    out = tmp_path / 'new'
    for given, names in ((tmp_path, ['usage', 'information']),
                         (checkpoint, ['usage']), (path, ['information'])):
        images = tool.draw(given, out / given.name, 'png')
        assert [image.stem for image in images] == names
        assert all(image.stat().st_size > 5000 for image in images)


def test_what_cannot_be_drawn(tmp_path: Path, tool: ModuleType) -> None:
    out = tmp_path / 'new'
    with pytest.raises(FileNotFoundError, match='no checkpoint in'):
        tool.draw(tmp_path, out, 'png')
    path = scalars(tmp_path, RECORDS[:1])
    with pytest.raises(ValueError, match='holds no information of tasks'):
        tool.draw(path, out, 'png')
    plain = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=trunk().state_dict()), plain)
    with pytest.raises(ValueError, match='does not say how experts are used'):
        tool.draw(plain, out, 'png')
    checkpoint, _ = saved('hook', tmp_path)
    with pytest.raises(ValueError, match=r"usage.xyz'; .* 'png'"):
        tool.draw(checkpoint, out, 'xyz')
    assert not out.exists()

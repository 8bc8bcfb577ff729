# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is drawn is what a run's fusion ended with."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib import pyplot as plt

from _tiny import add_modules, build_runner, fusion_neck, model_cfg, vit

SCRIPT = Path(__file__).parents[2] / 'tools/analysis_tools/draw_gates.py'
FUSIONS = [
    dict(type='EnsMoE', top_k=1, zero_module=True),
    dict(type='ParameterMerge'),
    dict(type='LinearMoE'),
    dict(type='RoutedMoE'),
    dict(type='FixedFusion', weights=dict(n=-0.5)),
    dict(type='FixedMerge'),
]


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('draw_gates', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(folder: Path, backbone: dict, neck: dict,
          **changes) -> torch.nn.Module:
    run = build_runner(
        'cls',
        model_cfg('cls', dict(backbone, trunk=vit()), neck),
        folder,
        iters=3,
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[dict(type='vim_mm.GateLogHook', interval=1)],
        **changes)
    if neck['modules']:
        add_modules(run.model.backbone, *neck['modules'])
    run.train()
    return run.model


@pytest.mark.parametrize('cfg', FUSIONS, ids=lambda cfg: cfg['type'])
def test_every_fusion_is_logged_and_drawn(cfg: dict, tmp_path: Path,
                                          tool: ModuleType) -> None:
    backbone = train(tmp_path / 'run', dict(new_module='n', fusion=cfg),
                     fusion_neck('cls')).backbone
    steps = tool.read_gates(tool.find_scalars(tmp_path / 'run'))
    # what is logged: the start, each iteration, and where the run ended
    assert list(steps) == [0, 1, 2, 3]
    assert list(steps[3]) == list(backbone.slots)
    expected = backbone.fusion.gates('default').detach()
    drawn = torch.tensor([list(row.values()) for row in steps[3].values()])
    torch.testing.assert_close(drawn[:, :1], expected)
    zero = cfg.get('zero_module', False)
    assert list(steps[0]['layers.0.attn']) == ['n'] + ['zero module'] * zero
    if zero:
        assert drawn.sum(1).tolist() == pytest.approx([1.] * len(drawn))
    tool.draw(steps, tmp_path / 'new' / 'gates.png')
    assert plt.imread(tmp_path / 'new' / 'gates.png').std() > 0.01


def test_streams_are_drawn_by_level(tmp_path: Path, tool: ModuleType) -> None:
    model = train(tmp_path, {}, fusion_neck('cls', ['a', 'b']))
    steps = tool.read_gates(tool.find_scalars(tmp_path))
    assert steps[3].keys() == {'level0', 'level1', 'level2'}
    assert steps[3] == {
        level: pytest.approx(row)
        for level, row in model.neck.gates().items()
    }


def test_the_picture_holds_the_numbers(tool: ModuleType) -> None:
    steps = {
        0: dict(s=dict(a=.5, b=.5), t=dict(a=.5, b=.5)),
        9: dict(s=dict(a=.9, b=.1), t=dict(a=.3, b=-1.7)),
    }
    figure, (left, right) = plt.subplots(1, 2)
    tool.draw_lines(left, steps, ['a', 'b'])
    thick = [line for line in left.lines if line.get_linewidth() > 2]
    means = [line.get_ydata().tolist() for line in thick]
    assert means[0] == pytest.approx([.5, .6])
    assert means[1] == pytest.approx([.5, -.8])
    assert len(left.lines) == 2 + 2 * 2 + 1  # and the zero
    tool.draw_map(right, steps[9], ['a', 'b'])
    image, = right.images
    assert image.get_array().tolist() == [[.9, .1], [.3, -1.7]]
    assert image.get_clim() == (-1.7, 1.7)
    texts = [text.get_text() for text in right.texts]
    assert texts == ['0.90', '0.10', '0.30', '-1.70']
    plt.close(figure)


def test_the_latest_start_counts(tmp_path: Path, tool: ModuleType) -> None:
    for start in ('20250101_000000', '20250102_000000'):
        folder = tmp_path / start / 'vis_data'
        folder.mkdir(parents=True)
        folder.joinpath('scalars.json').write_text('{"loss": 1, "step": 1}\n')
    found = tool.find_scalars(tmp_path)
    assert found.parts[-3] == '20250102_000000'
    assert tool.find_scalars(found) == found
    with pytest.raises(ValueError, match='holds no gates: either'):
        tool.read_gates(found)
    with pytest.raises(FileNotFoundError, match='LocalVisBackend'):
        tool.find_scalars(tmp_path / 'absent')


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path,
                                                  tool: ModuleType) -> None:
    path = tmp_path / 'scalars.json'
    path.write_text('{"gates/s/m": 0.5, "step": 1}\n{"gates/s/m": 0.')
    assert tool.read_gates(path) == {1: {'s': {'m': 0.5}}}
    for content in (b'nothing\n', b'\x80\n'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match='no scalars.json of a run'):
            tool.read_gates(path)


@pytest.mark.parametrize('name', ['gates', 'gates.xyz'])
def test_a_format_that_cannot_be_written(name: str, tmp_path: Path,
                                         tool: ModuleType) -> None:
    with pytest.raises(ValueError, match=f"{name}'; .* 'png'"):
        tool.draw({1: {'s': {'m': 0.5}}}, tmp_path / 'new' / name)
    assert not (tmp_path / 'new').exists()


SHORT = {
    'one point': {0: dict(s=dict(a=-.4, b=0.))},
    'two points': {0: dict(s=dict(a=1.)), 7: dict(s=dict(a=-2.))},
    'all weights zero': {0: dict(s=dict(a=0.), t=dict(a=0.))},
    'a module and a slot that joined': {
        0: dict(s=dict(a=.5)),
        5: dict(s=dict(a=.5, b=.5), t=dict(b=1.))
    },
}


@pytest.mark.parametrize('name', list(SHORT))
def test_short_runs_are_drawn(name: str, tmp_path: Path,
                              tool: ModuleType) -> None:
    steps = SHORT[name]
    tool.draw(steps, tmp_path / 'gates.png')
    assert plt.imread(tmp_path / 'gates.png').std() > .01
    figure, (left, right) = plt.subplots(1, 2)
    last = steps[max(steps)]
    modules = list(dict.fromkeys(m for row in last.values() for m in row))
    tool.draw_lines(left, steps, modules)
    thick = [line for line in left.lines if line.get_linewidth() > 2]
    # what is a point or two is marked
    assert {line.get_marker() for line in thick} == {'o'}
    for line, module in zip(thick, modules):
        known = [row[module] for row in last.values() if module in row]
        assert line.get_ydata()[-1] == pytest.approx(sum(known) / len(known))
    tool.draw_map(right, last, modules)
    written = [float(text.get_text()) for text in right.texts]
    assert written == pytest.approx(
        [w for row in last.values() for w in row.values()])
    plt.close(figure)


def test_a_run_without_iterations_shows_where_it_started(
        tmp_path: Path, tool: ModuleType) -> None:
    train(tmp_path, dict(new_module='n', fusion=dict(type='LinearMoE')),
          fusion_neck('cls'), train_cfg=dict(by_epoch=True, max_epochs=0))
    steps = tool.read_gates(tool.find_scalars(tmp_path))
    assert list(steps) == [0] and steps[0]['layers.0.attn'] == dict(n=1.)


def test_a_run_that_weighs_nothing_is_told_so(tmp_path: Path,
                                              tool: ModuleType) -> None:
    path = tmp_path / 'scalars.json'
    path.write_text('{"step": 0}\n{"loss": 1, "step": 1}\n')
    with pytest.raises(ValueError, match='the run weighs no modules, or'):
        tool.read_gates(path)

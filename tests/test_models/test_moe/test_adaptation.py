# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Adapted trunks as modules of a zoo."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Callable, Dict

import pytest
import torch
from _moe_tiny import (build_moe, images, moe_cfg, ordinary_cfg, some_usage,
                       write_moe)
from mmengine.config import Config
from safetensors.torch import load_file
from torch import Tensor, nn

from _tiny import add_modules, build_backbone, build_runner
from vim_mm.models.moe import (load_adaptation, load_moe, moe_layers,
                               save_adaptation, save_moe)
from vim_mm.utils.cli import run_cli
from vim_mm.zoo import Zoo, ZooError, save_module

ADAPTED = dict(
    routers=dict(task='new', train='routers'),
    known_task=dict(task='seg', train='routers'),
    new_experts=dict(
        task='new',
        like='seg',
        train=['routers', 'experts'],
        experts=dict(num=2)),
    used_experts=dict(
        task='seg',
        train=['routers', 'experts'],
        experts=dict(num=3, select='most')),
    pruned=dict(task='seg', train='routers', threshold=20),
    all_of_it=dict(
        task='new',
        like='seg',
        threshold=20,
        k=1,
        train=['routers', 'experts'],
        experts=dict(num=1)))


@pytest.fixture()
def file(tmp_path: Path) -> str:
    path = tmp_path / 'trunk.safetensors'
    write_moe(path)
    return str(path)


@torch.no_grad()
def outputs(trunk: nn.Module) -> Tensor:
    trunk.eval()
    return trunk(images())[0]


def adapted(file: str, **kwargs) -> nn.Module:
    """A trunk whose learning parameters have moved."""
    trunk = load_moe(file, **kwargs)
    with torch.no_grad():
        for param in trunk.parameters():
            if param.requires_grad:
                param += torch.randn(param.shape) / 10
    return trunk


def sizes(trunk: nn.Module) -> list:
    return [len(layer.experts) for layer in moe_layers(trunk).values()]


@pytest.mark.parametrize('what', ADAPTED)
@pytest.mark.parametrize('attention', [False, True])
def test_round_trip(attention: bool, what: str, file: str,
                    tmp_path: Path) -> None:
    write_moe(Path(file), attention=attention)
    kwargs = ADAPTED[what]
    trunk = adapted(file, **kwargs)
    zoo = str(tmp_path / 'zoo')
    card = save_adaptation(
        trunk, load_moe(file), 'mine', zoo, licence='MIT', task='seg')
    assert Zoo(zoo).verify() == []
    again = load_moe(file, zoo=zoo, module='mine')
    assert torch.equal(outputs(again), outputs(trunk))
    assert not torch.equal(outputs(load_moe(file)), outputs(trunk))
    assert sizes(again) == sizes(trunk)
    for layer, other in zip(
            moe_layers(again).values(),
            moe_layers(trunk).values()):
        assert layer.tasks == [kwargs['task']] and layer.k == other.k
    # only what was trained is kept; numbers that are no weights cost nothing
    trained = sum(p.numel() for p in trunk.parameters() if p.requires_grad)
    assert card.num_params == trained
    assert card.kind == 'MoEAdaptation' and card.adapter['task'] == \
        kwargs['task']


def test_a_loaded_module_trains_on(file: str, tmp_path: Path) -> None:
    zoo = str(tmp_path / 'zoo')
    first = adapted(file, **ADAPTED['all_of_it'])
    save_adaptation(first, load_moe(file), 'first', zoo)
    source = dict(zoo=zoo, module='first')
    learns = load_moe(
        file,
        train=['routers', 'experts'],
        experts=dict(num=1, select='new'),
        task='newer',
        like='new',
        **source)
    names = [n for n, p in learns.named_parameters() if p.requires_grad]
    assert names and all('.newer.' in n or '.groups.' in n for n in names)
    second = adapted(file, train='routers', **source)
    save_adaptation(second, load_moe(file), 'second', zoo)
    again = load_moe(file, zoo=zoo, module='second')
    assert torch.equal(outputs(again), outputs(second))


def test_other_trunks_are_refused(file: str, tmp_path: Path) -> None:
    zoo, other = str(tmp_path / 'zoo'), str(tmp_path / 'other.safetensors')
    trunk = adapted(file, **ADAPTED['routers'])
    save_adaptation(trunk, load_moe(file), 'mine', zoo)
    # other experts, fewer layers, and other layers than experts
    save_moe(build_moe(seed=3), moe_cfg(), other)
    with pytest.raises(ZooError, match='does not fit this trunk.*differ'):
        load_moe(other, zoo=zoo, module='mine')
    few = dict(ffns=r'layers\.2\.ffn')
    save_moe(build_moe(**few), moe_cfg(**few), other)
    with pytest.raises(ZooError, match='does not fit this trunk'):
        load_moe(other, zoo=zoo, module='mine')
    same_experts = load_moe(file)
    with torch.no_grad():
        same_experts.layers[0].attn.qkv.weight += 1
    save_moe(same_experts, moe_cfg(), other)
    with pytest.raises(ZooError, match='experts are the same, but other'):
        load_moe(other, zoo=zoo, module='mine')


def test_what_is_no_module(file: str, tmp_path: Path) -> None:
    zoo = str(tmp_path / 'zoo')
    for train in ('all', 'shared', ['routers', 'shared']):
        trunk = adapted(file, task='seg', train=train)
        with pytest.raises(ZooError, match='beside routers and experts were'):
            save_adaptation(trunk, load_moe(file), 'mine', zoo)
    dense = build_backbone().trunk
    with pytest.raises(ValueError, match='has no layer of experts'):
        save_adaptation(dense, dense, 'mine', zoo)
    assert not Path(zoo).exists()


def test_modules_of_other_kinds(file: str, tmp_path: Path) -> None:
    zoo = str(tmp_path / 'zoo')
    backbone = build_backbone()
    add_modules(backbone, 'conv')
    save_module(backbone, 'conv', zoo)
    with pytest.raises(ZooError, match='is a ConvPass, no adaptation'):
        load_moe(file, zoo=zoo, module='conv')
    with pytest.raises(ZooError, match="has no module 'none'"):
        load_moe(file, zoo=zoo, module='none')
    for half in (dict(zoo=zoo), dict(module='conv')):
        with pytest.raises(ValueError, match='give both'):
            load_moe(file, **half)


def lists(key: str, value: list) -> Callable:

    def change(tensors: Dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith(key):
                tensors[name] = torch.tensor(value)

    return change


@pytest.mark.parametrize('what', ['routers', 'all_of_it'])
def test_other_gates_are_another_trunk(what: str, file: str,
                                       tmp_path: Path) -> None:
    zoo = str(tmp_path / 'zoo')
    save_adaptation(adapted(file, **ADAPTED[what]), load_moe(file), 'a', zoo)
    base = load_moe(file, k=1)
    load_adaptation(base, zoo, 'a')  # `k` is the adaptation's own
    for layer in moe_layers(base := load_moe(file)).values():
        layer.gate_scale = 1.
    before = outputs(base)
    with pytest.raises(ZooError, match='gate_scale 4.0 of its experts'):
        load_adaptation(base, zoo, 'a')
    assert torch.equal(outputs(base), before)


@pytest.mark.parametrize('change, words', [
    (lists('source', [0, 99]), 'cannot be used'),
    (lists('source', [0, 1, 2]), 'its router chooses from other'),
    (lists('source', [0, -1]), 'cannot be used'),
    (lists('router.columns', [5, 99]), 'columns that its router has not'),
    (lists('router.columns', [5, -1]), 'columns that its router has not'),
])
def test_foreign_lists(change: Callable, words: str, file: str,
                       tmp_path: Path) -> None:
    zoo = tmp_path / 'zoo'
    trunk = adapted(file, task='seg', train='routers', threshold=1000)
    card = save_adaptation(trunk, load_moe(file), 'mine', str(zoo))
    tensors = load_file(zoo / 'mine' / 'module.safetensors')
    change(tensors)
    Zoo(zoo).save(replace(card, name='bad'), tensors)
    base = load_moe(file)
    before = outputs(base)
    with pytest.raises(ZooError, match=words):
        load_adaptation(base, str(zoo), 'bad')
    assert torch.equal(outputs(base), before)


# --------------------------------------------------------------------- tool


@pytest.fixture(scope='module')
def tool() -> Callable:
    script = Path(__file__).parents[3] / 'tools' / 'zoo.py'
    spec = importlib.util.spec_from_file_location('zoo_cli', script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def main(*argv: object) -> int:
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: module.main(list(map(str, argv))))
        return caught.value.code or 0

    return main


def test_from_a_run_to_the_zoo(tool: Callable, file: str, tmp_path: Path,
                               capsys) -> None:
    model = ordinary_cfg('cls', checkpoint=file, **ADAPTED['all_of_it'])
    card = dict(task='cls', dataset='squares', licence='Apache-2.0')
    config, zoo = tmp_path / 'run.py', tmp_path / 'zoo'
    Config(dict(model=model, default_scope='mmpretrain',
                module_card=card)).dump(config)
    runner = build_runner('cls', model, tmp_path / 'run', iters=2)
    runner.train()
    checkpoint = tmp_path / 'run' / 'iter_2.pth'
    assert tool('save', config, checkpoint, zoo, '--name', 'squares') == 0
    assert 'Saved squares' in capsys.readouterr().out
    for command in ('list', 'verify'):
        assert tool(command, zoo) == 0
        assert 'squares' in capsys.readouterr().out
    assert tool('show', zoo, 'squares', '--json') == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown['kind'] == 'MoEAdaptation' and shown['dataset'] == 'squares'
    assert shown['trunk']['weights'] == 'trunk.safetensors'
    assert tool('show', zoo, 'squares') == 0
    again = load_moe(file, zoo=str(zoo), module='squares')
    assert torch.equal(outputs(again), outputs(runner.model.backbone))
    head = Zoo(zoo).load_head('squares')
    assert torch.equal(head['head.fc.weight'], runner.model.head.fc.weight)


def test_what_the_tool_refuses(tool: Callable, file: str, tmp_path: Path,
                               capsys) -> None:
    model = ordinary_cfg('cls', checkpoint=file, train='all')
    config, zoo = tmp_path / 'run.py', tmp_path / 'zoo'
    Config(dict(model=model, default_scope='mmpretrain')).dump(config)
    runner = build_runner('cls', model, tmp_path / 'run', iters=1)
    runner.train()
    checkpoint = tmp_path / 'run' / 'iter_1.pth'
    assert tool('save', config, checkpoint, zoo) == 1
    assert 'is no module beside its trunk' in capsys.readouterr().err
    assert not zoo.exists()


def test_usage_of_all_is_distinct() -> None:
    """Pruning in these tests drops experts."""
    trunk = build_moe()
    for tasks in some_usage(trunk).values():
        percent = 100 * tasks['seg'] / tasks['seg'].sum()
        assert 2 <= int((percent > 10).sum()) < 8

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Moe files: any structure in, the same out, and nothing foreign."""

import json
from importlib import import_module
from pathlib import Path
from typing import Callable, Optional

import pytest
import torch
from _moe_tiny import (TASKS, build_moe, images, moe_cfg, ordinary_cfg,
                       some_usage, write_moe)
from mmengine.runner import CheckpointLoader, load_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from _tiny import KINDS, build_runner, same, snapshot
from vim_mm.models.backbones import build_trunk
from vim_mm.models.moe import (MoEFileError, add_task, extract, freeze,
                               load_moe, moe_layers, read_moe, save_moe, set_k)
from vim_mm.models.tasks import select_task
from vim_mm.registry import MODELS


@torch.no_grad()
def outputs(trunk: nn.Module, task: Optional[str] = None) -> Tensor:
    trunk.eval()
    if task is not None:
        select_task(trunk, task)
    return trunk(images())[-1]


@pytest.fixture()
def path(tmp_path: Path) -> Path:
    return tmp_path / 'trunk.safetensors'


def prune(trunk: nn.Module) -> None:
    extract(trunk, ['seg'], some_usage(trunk), 20)


def split(trunk: nn.Module) -> None:
    freeze(trunk, 'experts', dict(num=2, select='most'), some_usage(trunk))


SURGERY = dict(
    nothing=lambda trunk: None,
    fewer_active=lambda trunk: set_k(trunk, 1),
    pruned=prune,
    split=split,
    extended=lambda trunk: add_task(trunk, 'new', 3),
    copied=lambda trunk: (add_task(trunk, 'new', 3, like='seg'),
                          add_task(trunk, 'newer', 9, like='new')),
    much=lambda trunk: (set_k(trunk, 1), prune(trunk),
                        add_task(trunk, 'new', 2, like='seg'), split(trunk)))


@pytest.mark.parametrize('router', ['linear', 'mlp'])
@pytest.mark.parametrize('what', SURGERY)
@pytest.mark.parametrize('attention', [False, True])
def test_round_trip(attention: bool, what: str, router: str,
                    path: Path) -> None:
    kwargs = dict(attention=attention, router=router, gate_scale=1.5)
    cfg, trunk = moe_cfg(**kwargs), build_moe(**kwargs)
    SURGERY[what](trunk)
    save_moe(trunk, cfg, path, some_usage(trunk))
    file = read_moe(path)
    assert file.num_params == sum(p.numel() for p in trunk.parameters())
    again = load_moe(str(path))
    assert again.is_init
    assert same(snapshot(again), snapshot(trunk))
    layers = moe_layers(trunk)
    assert file.tasks == list(layers.values())[0].tasks
    for name, layer in moe_layers(again).items():
        twin = layers[name]
        assert (layer.tasks, layer.k, layer.gate_scale,
                layer.structure) == (twin.tasks, twin.k, twin.gate_scale,
                                     twin.structure)
        for task, counts in some_usage(trunk)[name].items():
            torch.testing.assert_close(file.usage[name][task], counts.double())
    for task in file.tasks:
        assert torch.equal(outputs(again, task), outputs(trunk, task))
    # and once more, by the config that an adapted model has
    twice = path.with_name('twice.safetensors')
    save_moe(again, dict(type='vim_mm.load_moe', checkpoint=str(path)), twice)
    assert read_moe(twice).backbone == file.backbone
    assert same(snapshot(load_moe(str(twice))), snapshot(trunk))


# ------------------------------------------------------------ in mm* models


@pytest.mark.parametrize('kind', KINDS)
def test_ordinary_backbone_of_each_library(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / 'trunk.safetensors')
    trunk = build_moe()
    prune(trunk)
    save_moe(trunk, moe_cfg(), path)
    cfg = ordinary_cfg(kind, checkpoint=path)
    runner = build_runner(kind, cfg, tmp_path / 'run', iters=2)
    before = outputs(runner.model.backbone)
    assert torch.equal(before, outputs(trunk))
    runner.model.init_weights()  # as training does
    assert torch.equal(before, outputs(runner.model.backbone))
    runner.train()
    learned = runner.model.backbone
    assert not torch.equal(before, outputs(learned))
    sizes = [layer.structure for layer in moe_layers(learned).values()]
    assert sizes == [layer.structure for layer in moe_layers(trunk).values()]
    # its checkpoint fits the same config, and becomes a file again
    again = MODELS.build(cfg)
    state = CheckpointLoader.load_checkpoint(
        str(tmp_path / 'run' / 'iter_2.pth'), 'cpu')['state_dict']
    again.load_state_dict(state)
    assert torch.equal(outputs(again.backbone), outputs(learned))


@pytest.mark.parametrize('train', ['routers', ['routers', 'experts']])
def test_frozen_across_resume(train, tmp_path: Path) -> None:
    path = str(tmp_path / 'trunk.safetensors')
    write_moe(path)
    experts = dict(num=2) if 'experts' in train else None
    cfg = ordinary_cfg(
        'cls',
        checkpoint=path,
        task='new',
        like='seg',
        train=train,
        experts=experts,
        k=1)
    first = build_runner('cls', cfg, tmp_path / 'run', iters=2)
    start = snapshot(first.model)
    first.train()
    last = build_runner('cls', cfg, tmp_path / 'run', iters=4, resume=True)
    last.train()
    assert last.iter == 4
    learns = {n for n, p in last.model.named_parameters() if p.requires_grad}
    end = snapshot(last.model)
    changed = {n for n in start if not torch.equal(start[n], end[n])}
    assert changed == learns
    words = ['head.', '.routers.new.'] + ['.groups.1.'] * bool(experts)
    for word in words:
        assert any(word in name for name in learns)
    assert all(any(word in name for word in words) for name in learns)


def test_frozen_trunk_of_modules(path: Path) -> None:
    write_moe(path)
    trunk = build_trunk(dict(type='vim_mm.load_moe', checkpoint=str(path)))
    assert torch.equal(outputs(trunk), outputs(load_moe(str(path))))


# ------------------------------------------------- checkpoints of other runs


def loaded(model: nn.Module, state: dict) -> nn.Module:
    """As mmengine's runners load, which only warn of other shapes."""
    load_state_dict(model, {f'backbone.{k}': v for k, v in state.items()})
    return model


class Holder(nn.Module):

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


@pytest.mark.parametrize('theirs, mine, words', [
    ('pruned', 'nothing', 'chooses from 8 of 8 experts.*from . of 8 experts, '
     'which was pruned.*load_moe'),
    ('nothing', 'pruned', 'this model is pruned.*vim-mm moe extract'),
    ('extended', 'nothing', 'there are 8 experts, 11 in the checkpoint'),
    ('much', 'nothing', 'chooses from 8 of 8'),
    ('extended', 'pruned', 'this model is pruned'),
])
def test_other_structures_are_refused(theirs: str, mine: str,
                                      words: str) -> None:
    trunks = [build_moe(), build_moe()]
    for trunk, what in zip(trunks, (theirs, mine)):
        SURGERY[what](trunk)
    with pytest.raises(ValueError, match=words) as error:
        loaded(Holder(trunks[1]), trunks[0].state_dict())
    assert 'In `backbone.layers.1.ffn.layers.0.0`' in str(error.value)


@pytest.mark.parametrize('theirs, mine', [('nothing', 'split'),
                                          ('split', 'nothing'),
                                          ('nothing', 'extended')])
def test_same_experts_in_other_groups(theirs: str, mine: str) -> None:
    trunks = [build_moe(0), build_moe(1)]
    for trunk, what in zip(trunks, (theirs, mine)):
        SURGERY[what](trunk)
    groups = [
        layer.experts.groups[-1] for layer in moe_layers(trunks[1]).values()
    ]
    last = [snapshot(group) for group in groups]
    loaded(Holder(trunks[1]), trunks[0].state_dict())
    for task in TASKS:
        assert torch.equal(outputs(trunks[1], task), outputs(trunks[0], task))
    if mine == 'extended':  # what the checkpoint lacks stays
        assert all(map(same, last, map(snapshot, groups)))


def test_other_routers_are_refused() -> None:
    with pytest.raises(
            ValueError,
            match="mlp routers and the checkpoint "
            "linear ones; set `router='linear'`"):
        loaded(Holder(build_moe()), build_moe(router='linear').state_dict())


# ------------------------------------------------------------- broken files


def rewrite(path: Path, change: Callable) -> None:
    """Change the header or tensors of a file."""
    header = json.loads(_header(path))
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, dict(moe=json.dumps(header)))


def _header(path: Path) -> str:
    from safetensors import safe_open
    with safe_open(path, 'pt') as file:
        return file.metadata()['moe']


LAYER = 'layers.1.ffn.layers.0.0'


def put(*keys, value) -> Callable:
    """A change of the header."""

    def change(header: dict, _: dict) -> None:
        for key in keys[:-1]:
            header = header[key]
        header[keys[-1]] = value

    return change


def drop(name: str) -> Callable:
    return lambda _, tensors: tensors.pop(name)


def shrink(name: str) -> Callable:
    return lambda _, tensors: tensors.update({name: tensors[name][:3].clone()})


@pytest.mark.parametrize('change, words', [
    (put('format', value=2), 'it has the format 2'),
    (put('backbone', value=dict(type='os.system', command='true')),
     "type 'os.system', which no library registers"),
    (put('backbone', 'type', value='subprocess.Popen'), 'subprocess.Popen'),
    (put('backbone', 'trunk', 'type',
         value='mmengine.fileio.dump'), 'mmengine.fileio.dump'),
    (put('backbone', 'trunk', 'act_cfg',
         value=dict(type='builtins.eval')), 'builtins.eval'),
    (put('backbone', 'trunk', 'norm_cfg', value=[dict(type=3)]), 'type 3'),
    (put('backbone', '_scope_', value='os'), "the scope 'os'"),
    (put('backbone', 'trunk', 'init_cfg',
         value=dict(type='Pretrained')), 'names weights elsewhere'),
    (put('backbone', value=None), 'cannot be used'),
    (put('backbone', 'k', value=200), 'cannot be'),
    (put('backbone', 'trunk', 'nonsense', value=1), 'nonsense'),
    (put('layers', value={}), 'describes other layers'),
    (put('layers', LAYER, 'k', value=9), '`k` is 9, but there are 8'),
    (put('layers', LAYER, 'k', value='2'), "has k '2'"),
    (put('layers', LAYER, 'tasks', value=['cls']), "names \\['cls'\\]"),
    (put('layers', 'nowhere', value=dict(tasks=[], k=1,
                                         gate_scale=1)), 'nowhere'),
    (put('usage', value=3), 'cannot be used'),
    (drop('cls_token'), 'cls_token'),
    (drop(f'{LAYER}.experts.groups.0.b1'), 'experts.groups.0.b1'),
    (shrink(f'{LAYER}.experts.groups.0.w2'), 'size mismatch'),
    (shrink(f'{LAYER}.routers.cls.net.2.weight'), 'size mismatch'),
])
def test_broken_files(change: Callable, words: str, path: Path) -> None:
    write_moe(path)
    rewrite(path, change)
    with pytest.raises(MoEFileError, match=words) as error:
        load_moe(str(path))
    assert '\n' not in str(error.value)
    assert str(error.value).endswith('write it again.')


def test_other_files(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='no moe file'):
        load_moe(str(path))
    save_file(dict(a=torch.ones(1)), path)
    with pytest.raises(MoEFileError, match='is no moe file'):
        load_moe(str(path))
    path.write_bytes(b'no such thing')
    with pytest.raises(MoEFileError, match='truncated or no safetensors'):
        load_moe(str(path))
    write_moe(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MoEFileError, match='is damaged: its bytes'):
        load_moe(str(path))


@pytest.mark.parametrize('config, words', [
    (dict(type='os.system'), 'no library registers'),
    (dict(type=nn.Linear), 'no library registers'),
    (moe_cfg(perturb=torch.ones(1)), 'plain values'),
])
def test_configs_that_no_file_may_hold(config: dict, words: str,
                                       path: Path) -> None:
    with pytest.raises(MoEFileError, match=words):
        save_moe(build_moe(), config, path)
    assert not path.exists()
    with pytest.raises(MoEFileError, match='ends in .safetensors'):
        save_moe(build_moe(), moe_cfg(), path.with_suffix('.pth'))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize('arguments, words', [
    (dict(k=9), '`k` is 9'),
    (dict(k=0), '`k` is 0'),
    (dict(k='2'), "`k` is '2'"),
    (dict(train='heads'), "`train` names 'heads'"),
    (dict(train=None), '`train` is None; give a list'),
    (dict(train='experts', experts=dict(num=0)), '`experts.num` is 0'),
    (dict(train='experts', experts=dict(num=True)), '`experts.num` is True'),
    (dict(train='experts', experts=2), '`experts` is 2; give a config'),
    (dict(task='a.b'), 'cannot name a task'),
    (dict(task=3), "'3' cannot name a task"),
    (dict(task='seg', threshold='3'), "`threshold` is '3'; give a number"),
    (dict(task='seg', threshold=-1), '`threshold` is -1; give'),
    (dict(train='experts', experts=dict(num=2)), "of task 'cls' would not "
     'know new experts'),
    (dict(task='seg', train='experts', experts=dict(num=2)), 'would not know'),
    (dict(task='seg', like='cls'), "task 'seg' has a router already"),
    (dict(task='new', like='det'), "no task 'det'"),
    (dict(task='new', threshold=3), 'no task says which experts'),
    (dict(threshold=3), 'no task says which experts'),
    (dict(
        task='seg',
        threshold=1000,
        k=8,
        train='experts',
        experts=dict(num=9, select='most')), 'give 1 to 8'),
])
def test_mistakes(arguments: dict, words: str, path: Path) -> None:
    write_moe(path)
    with pytest.raises(ValueError, match=words) as error:
        load_moe(str(path), **arguments)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('select', ['most', 'least'])
def test_a_new_task_uses_what_the_one_it_is_like_uses(
        select: str, path: Path) -> None:
    write_moe(path)
    chosen = []
    for arguments in (dict(task='seg'), dict(task='new', like='seg')):
        trunk = load_moe(
            str(path),
            train='experts',
            experts=dict(num=2, select=select),
            **arguments)
        chosen.append([[p.requires_grad for p in layer.experts.parameters()]
                       for layer in moe_layers(trunk).values()])
    assert chosen[0] == chosen[1] and any(chosen[0][0])


@pytest.mark.parametrize('arguments', [
    dict(task='seg', threshold=3),
    dict(task='seg', train='experts', experts=dict(num=2, select='most')),
])
def test_usage_that_the_file_lacks(arguments: dict, path: Path) -> None:
    write_moe(path, usage=False)
    with pytest.raises(ValueError, match='is not known; measure it'):
        load_moe(str(path), **arguments)


@pytest.mark.parametrize('like, start', [(None, 'afresh'),
                                         ('seg', "as those of 'seg'")])
def test_a_new_task_is_told(like: Optional[str], start: str, path: Path,
                            monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was mistyped is not taken for one of the file unseen."""
    write_moe(path)
    lines = []
    monkeypatch.setattr(
        import_module('vim_mm.models.moe.load_moe'), 'print_log',
        lambda line, **_: lines.append(line))
    load_moe(str(path), task='sge', like=like)
    load_moe(str(path), task='seg')
    assert lines == [
        "Task 'sge' is new to a trunk that knows ['cls', 'seg']: its routers "
        f'start {start}.'
    ]

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What runs, what learns, and the backward pass of what does not run."""

import re
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Dict, List

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from _tiny import (DIMS, KINDS, PLACES, SIZE, TWO_TASKS, Pictures, build_model,
                   build_runner, compiles, fill, fusion_neck, model_cfg, same,
                   snapshot, two_tasks, vit)
from vim_mm.engine.hooks.warm_head_hook import head_parameters
from vim_mm.engine.model_parts import fusing_part
from vim_mm.models.tasks import (TaskHolder, holders, learn_tasks, select_task,
                                 tie_in)
from vim_mm.registry import MODELS

FUSIONS = ['EnsMoE', 'LinearMoE', 'RoutedMoE']
BOTH = list(TWO_TASKS)


def build(folder: Path, *args, **kwargs) -> nn.Module:
    init_default_scope('mmpretrain')
    cfg = two_tasks(folder, *args, **kwargs)
    torch.manual_seed(0)
    return MODELS.build(cfg).train()


def pictures() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE)


def loss_of(model: nn.Module) -> Tensor:
    batch = model.data_preprocessor(Pictures('cls', 2).batch(), True)
    return model(**batch, mode='loss')['loss']


def learning(model: nn.Module) -> List[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def owned(model: nn.Module, task: str) -> Dict[str, nn.Parameter]:
    """What learns for a task alone: gates, a module, a head."""
    module = TWO_TASKS[task][0]
    return {
        name: param
        for name, param in model.named_parameters()
        if f'.{task}' in name or f'members.{module}.' in name
    }


# --------------------------------------------------------- select and learn


@pytest.mark.parametrize('place', PLACES)
def test_selecting_changes_nothing_but_what_runs(place: str,
                                                 tmp_path: Path) -> None:
    model = build(tmp_path, place, learn=BOTH).eval()
    fill(model, 0.1)
    parts = holders(model)
    assert len(parts) == 2 and parts[0] is fusing_part(model)
    assert all(isinstance(part, TaskHolder) for part in parts)
    before, tensors = learning(model), snapshot(model)
    outputs = {}
    for task in 'yxyx':
        select_task(model, task)
        assert [part.task for part in parts] == [task] * 2
        with torch.no_grad():
            output = model(torch.ones(1, 3, SIZE, SIZE))
        assert torch.equal(outputs.setdefault(task, output), output)
    assert not torch.equal(outputs['x'], outputs['y'])
    assert learning(model) == before and same(snapshot(model), tensors)


@pytest.mark.parametrize('tasks', [['x'], ['y'], ['y', 'x'], []])
@pytest.mark.parametrize('place', PLACES)
def test_learning_changes_nothing_but_what_learns(place: str, tasks: list,
                                                  tmp_path: Path) -> None:
    model = build(tmp_path, place)
    parts = holders(model)
    # what configs of one task mean: the first runs and learns
    assert all(p.task == 'x' and p.learning == ['x'] for p in parts)
    learn_tasks(model, tasks)
    assert [part.task for part in parts] == ['x'] * 2
    assert [part.learning for part in parts] == [tasks] * 2
    for task in BOTH:
        for name, param in owned(model, task).items():
            # streams learn whatever the neck makes of them
            streams = place == 'neck' and 'members' in name
            assert param.requires_grad == (task in tasks or streams)
    shared = model.backbone.bank.members['b']
    assert all(p.requires_grad == bool(tasks or place == 'neck')
               for p in shared.parameters())
    assert not any(p.requires_grad for p in model.backbone.trunk.parameters())
    # what joins later learns when it is told to
    fusing_part(model).add_task('z', ['a'])
    assert fusing_part(model).learning == tasks
    assert not any('.z' in name for name in learning(model))


def test_tuned_modules_are_in_training_if_they_learn(tmp_path: Path) -> None:
    model = build(tmp_path)
    bank = model.backbone.bank
    for tasks in (['x'], ['y'], BOTH):
        learn_tasks(model, tasks)
        known = {name for task in tasks for name in TWO_TASKS[task]}
        assert {name for name in bank.names
                if bank.members[name].training} == known


@pytest.mark.parametrize('place', PLACES)
def test_mistakes_are_sentences_and_change_nothing(place: str,
                                                   tmp_path: Path) -> None:
    model = build(tmp_path, place)
    before = learning(model)
    with pytest.raises(ValueError, match=r"no task 'z'; the model knows"):
        select_task(model, 'z')
    with pytest.raises(ValueError, match=r"no task 'z'; the model knows"):
        learn_tasks(model, ['y', 'z'])
    with pytest.raises(ValueError, match="is the name 'y'; give a list"):
        learn_tasks(model, 'y')
    for part in holders(model):
        with pytest.raises(ValueError, match="no task 'z'"):
            part.select_task('z')
        with pytest.raises(ValueError, match="no task 'z'"):
            part.learn_tasks(['y', 'z'])
        with pytest.raises(ValueError, match="is the name 'y'; give a list"):
            part.learn_tasks('y')
    # a part that cannot tell which of its tasks is meant
    fusing_part(model).add_task('z', ['a'])
    with pytest.raises(ValueError, match="no task 'z'; TaskHeads knows"):
        select_task(model, 'z')
    assert [part.task for part in holders(model)] == ['x', 'x']
    assert learning(model) == before
    with pytest.raises(ValueError, match='wrapped already'):
        learn_tasks(nn.DataParallel(model), ['y'])
    bare = build_model('cls', dict(trunk=vit()))
    assert not holders(bare)
    with pytest.raises(ValueError, match=r"no task 'x'; the model knows \[\]"):
        select_task(bare, 'x')
    for part, sentence in ((bare.backbone, 'has no `fusion`'),
                           (bare.neck, 'weighs no streams')):
        with pytest.raises(ValueError, match=sentence):
            part.select_task('x')
        with pytest.raises(ValueError, match=sentence):
            part.learn_tasks(['x'])
        part.select_task(None)
        part.learn_tasks([])


def test_a_part_with_one_task_serves_all(tmp_path: Path) -> None:
    cfg = two_tasks(tmp_path, learn=BOTH)
    cfg.backbone.fusion = dict(type='EnsMoE')
    del cfg.backbone.learn_tasks
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg)
    learn_tasks(model, ['y'])
    select_task(model, 'y')
    assert model.backbone.task == 'default'
    assert model.backbone.learning == ['default']
    assert model.head.task == 'y' and model.head.learning == ['y']
    loss_of(model).backward()
    assert all(p.grad is not None for p in model.parameters()
               if p.requires_grad)


# -------------------------------------------------------- what does not run


@pytest.mark.parametrize('running', BOTH)
@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('place', PLACES)
def test_an_idle_task_takes_part_with_zeros(place: str, fusion: str,
                                            running: str,
                                            tmp_path: Path) -> None:
    model = build(tmp_path, place, fusion, learn=BOTH)
    select_task(model, running)
    alone = build(tmp_path, place, fusion)
    select_task(alone, running)
    learn_tasks(alone, [running])
    losses = [loss_of(model), loss_of(alone)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    params, other = dict(model.named_parameters()), dict(
        alone.named_parameters())
    idle = owned(model, 'x' if running == 'y' else 'y')
    assert len(idle) > 10
    for name in learning(model):
        grad = params[name].grad
        assert grad is not None, name
        if name in idle:
            assert grad.shape == params[name].shape and not grad.any(), name
        else:
            assert torch.equal(grad, other[name].grad), name
    assert any(params[name].grad.any() for name in owned(model, running))


@pytest.mark.parametrize('place', PLACES)
def test_a_task_that_does_not_learn_is_refused_in_training(
        place: str, tmp_path: Path) -> None:
    model = build(tmp_path, place)
    select_task(model, 'y')
    with pytest.raises(
            ValueError, match="'y' runs in training.*learn are.*'x'.*eval"):
        loss_of(model)
    with torch.no_grad():
        loss_of(model)
    loss_of(model.eval())
    learn_tasks(model.train(), BOTH)
    loss_of(model)
    learn_tasks(model, [])  # nothing does, so nobody is left out
    loss_of(model)


def test_nothing_is_tied_in_where_nothing_idles(tmp_path: Path) -> None:
    cases = [(None, False, True, False), (BOTH, True, False, False),
             (BOTH, False, True, True), (BOTH, True, True, True),
             # levels that nobody reads are waited for, too
             (None, True, True, True)]
    for learn, training, grad, tied in cases:
        backbone = build(tmp_path, learn=learn).backbone.train(training)
        with torch.set_grad_enabled(grad):
            outputs = backbone(pictures())
        names = [type(out.grad_fn).__name__ for out in outputs]
        assert ['TieIn' in name for name in names] == [tied] * 3


SPECIAL = [0., -0., torch.nan, torch.inf, -torch.inf, 1e-45, -3.5]


def test_what_zero_3_has_taken_away_gets_no_gradient() -> None:
    """It leaves parameters without elements, and knows how many they had."""
    here, away = (nn.Parameter(torch.ones(n)) for n in (3, 0))
    here.ds_numel = away.ds_numel = 3
    x = torch.ones(2, requires_grad=True)
    tie_in(x * 2, [here, away]).sum().backward()
    assert here.grad is not None and not here.grad.any()
    assert away.grad is None


@pytest.mark.parametrize('dtype', [
    torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_no_bit_of_an_output_changes(dtype: torch.dtype) -> None:
    x = torch.tensor(SPECIAL).to(dtype)
    idle = nn.Parameter(torch.tensor([torch.nan, torch.inf]))
    output = tie_in(x, [idle])
    assert torch.equal(output.view(torch.int8), x.view(torch.int8))
    assert output.data_ptr() == x.data_ptr()
    output.sum().backward()
    assert torch.equal(idle.grad, torch.zeros(2))


def test_structures_and_what_is_nothing_to_do() -> None:
    idle, fixed = nn.Parameter(torch.ones(2, 3)), torch.ones(2)
    outputs = (torch.ones(2), [torch.zeros(1), dict(a=torch.ones(1))],
               torch.arange(3), None, 'name')
    assert tie_in(outputs, []) is outputs
    assert tie_in(outputs, [fixed]) is outputs
    with torch.no_grad():
        assert tie_in(outputs, [idle]) is outputs
    tied = tie_in(outputs, [fixed, idle])
    assert type(tied) is tuple and type(tied[1]) is list
    assert tied[2] is outputs[2] and tied[3:] == (None, 'name')
    assert not any(map(torch.is_tensor, tie_in((None, ), [idle])))
    # whichever output is read, the idle are reached, once
    for read in (tied[0], tied[1][0], tied[1][1]['a']):
        idle.grad = None
        read.sum().backward(retain_graph=True)
        assert torch.equal(idle.grad, torch.zeros(2, 3))
    assert fixed.grad is None


def test_outputs_may_be_changed_in_place_as_before() -> None:
    """And what the graph still needs is guarded as before."""
    idle, weight = nn.Parameter(torch.ones(2)), nn.Parameter(torch.randn(5))
    output = tie_in(weight * 2, [idle]).relu_()
    output.sum().backward()
    assert torch.equal(weight.grad, 2. * (weight > 0))
    needed = weight.exp()
    tie_in(needed, [idle]).mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace'):
        needed.sum().backward()


def test_unread_outputs_send_back_zeros() -> None:
    """What only they depend on is waited for by other processes, too."""
    idle, first, second = (nn.Parameter(torch.ones(2)) for _ in range(3))
    outputs = tie_in((first * 2, second * 2), [idle])
    outputs[0].sum().backward()
    assert torch.equal(first.grad, torch.full((2, ), 2.))
    for param in (second, idle):
        assert torch.equal(param.grad, torch.zeros(2))


@compiles
@pytest.mark.slow
@pytest.mark.parametrize('fusion', FUSIONS)
def test_idle_tasks_compile_to_one_graph(fusion: str, tmp_path: Path) -> None:
    backbone = build(tmp_path, fusion=fusion, learn=BOTH).backbone
    for part in backbone.trunk.modules():
        if hasattr(part, 'drop_prob'):  # a numpy number, which breaks graphs
            part.drop_prob = float(part.drop_prob)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend='eager', fullgraph=True)
    for task in 'xyx':
        backbone.select_task(task)
        x, results = pictures(), []
        for model in (compiled, backbone):
            backbone.zero_grad()
            outputs = model(x)
            sum(out.square().sum() for out in outputs).backward()
            results.append([*outputs, *(p.grad for p in backbone.parameters()
                                        if p.requires_grad)])
        for first, second in zip(*results):
            torch.testing.assert_close(first, second)


# ------------------------------------------------------------------- heads


def head_of(model: nn.Module) -> str:
    return next(name for name in ('head', 'bbox_head', 'decode_head')
                if hasattr(model, name))


@pytest.mark.parametrize('task', BOTH)
@pytest.mark.parametrize('kind', KINDS)
def test_heads_of_tasks_are_ordinary_heads(kind: str, task: str) -> None:
    init_default_scope(dict(cls='mmpretrain', det='mmdet', seg='mmseg')[kind])
    cfg = model_cfg(kind, dict(trunk=vit()), fusion_neck(kind))
    torch.manual_seed(0)
    plain = MODELS.build(cfg)
    name = head_of(plain)
    cfg[name] = dict(
        type='vim_mm.TaskHeads', task=task,
        heads={other: cfg[name] for other in BOTH})
    model = MODELS.build(cfg)
    heads = getattr(model, name)
    assert heads.running is heads.heads[task] and heads.learning == [task]
    plain.backbone, plain.neck = model.backbone, model.neck
    getattr(plain, name).load_state_dict(heads.running.state_dict())
    batch = Pictures(kind, 2).batch()
    losses = [
        m.train()(**m.data_preprocessor(deepcopy(batch), True), mode='loss')
        for m in (model, plain)
    ]
    assert losses[0].keys() == losses[1].keys()
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key])
    with torch.no_grad():
        samples = [m.eval().test_step(deepcopy(batch))
                   for m in (model, plain)]
    said = [re.sub(r'0x\w+', '', str(found)) for found in samples]
    assert said[0] == said[1]


def test_heads_tell_what_the_running_one_is() -> None:
    init_default_scope('mmpretrain')
    linear = dict(type='LinearClsHead', in_channels=4)
    heads = MODELS.build(
        dict(
            type='vim_mm.TaskHeads',
            heads=dict(x=dict(linear, num_classes=2),
                       y=dict(linear, num_classes=5)),
            topk=(1, 2)))
    assert heads.num_classes == 2 and heads.topk == (1, 2)
    assert heads((torch.ones(3, 4), )).shape == (3, 2)
    heads.select_task('y')
    assert heads.num_classes == 5
    assert heads.eval()((torch.ones(3, 4), )).shape == (3, 5)
    assert not hasattr(heads, 'roi_feat_area')
    copy = deepcopy(heads)
    assert copy.task == 'y' and copy.num_classes == 5
    assert copy.running is not heads.running


def test_what_a_head_freezes_stays_frozen() -> None:
    init_default_scope('mmpretrain')
    fixed = nn.Linear(2, 2)
    fixed.bias.requires_grad_(False)
    MODELS.register_module('FixedHead', module=lambda: fixed, force=True)
    try:
        heads = MODELS.build(
            dict(
                type='vim_mm.TaskHeads',
                heads=dict(x=dict(type='vim_mm.FixedHead'))))
    finally:
        MODELS.module_dict.pop('FixedHead')
    assert learning(heads) == ['heads.x.weight']
    heads.learn_tasks([])
    assert learning(heads) == []
    heads.learn_tasks(['x'])
    assert learning(heads) == ['heads.x.weight']


def test_every_head_starts_as_its_config_says() -> None:
    init_default_scope('mmpretrain')
    head = dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=DIMS,
        init_cfg=dict(type='Constant', layer='Linear', val=0.25, bias=0.5))
    heads = MODELS.build(
        dict(type='vim_mm.TaskHeads', heads=dict(x=head, y=head)))
    heads.init_weights()
    for name in 'xy':
        assert (heads.heads[name].fc.weight == 0.25).all()
        assert (heads.heads[name].fc.bias == 0.5).all()


def test_heads_mistakes_are_sentences() -> None:
    head = dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=4)
    for name in ('a.b', '', 'keys', 'training'):
        with pytest.raises(ValueError, match='cannot name a task'):
            MODELS.build(dict(type='vim_mm.TaskHeads', heads={name: head}))
    with pytest.raises(ValueError, match='`heads` is empty'):
        MODELS.build(dict(type='vim_mm.TaskHeads', heads={}))
    with pytest.raises(ValueError, match="`heads` is 'x'; give a config"):
        MODELS.build(dict(type='vim_mm.TaskHeads', heads='x'))
    for wrong in (dict(task='z'), dict(learn_tasks=['z'])):
        with pytest.raises(ValueError, match="no task 'z'; TaskHeads knows"):
            MODELS.build(
                dict(type='vim_mm.TaskHeads', heads=dict(x=head), **wrong))


# --------------------------------------------------------------------- runs


class Alternate(Hook):
    """Another task in every iteration."""

    def before_train_iter(self, runner, batch_idx: int, data_batch=None):
        select_task(runner.model, BOTH[runner.iter % 2])


@pytest.mark.parametrize('place', PLACES)
def test_a_resumed_run_goes_on_with_all_tasks(place: str,
                                              tmp_path: Path) -> None:
    cfg = two_tasks(tmp_path, place, learn=BOTH)

    def run(name: str, iters: int, **kwargs) -> SimpleNamespace:
        runner = build_runner(
            'cls', cfg, tmp_path / name, iters=iters, batch_size=8,
            custom_hooks=[Alternate()], **kwargs)
        # all pictures at once: the order in which they come does not matter
        runner.train()
        return runner

    straight = run('straight', 4)
    run('half', 2)
    resumed = run('rest', 4, resume=True,
                  load_from=str(tmp_path / 'half' / 'iter_2.pth'))
    state = straight.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, state[key], msg=key)
    fresh = build(tmp_path, place).state_dict()
    for task in BOTH:
        for name in owned(straight.model, task):
            assert not torch.equal(state[name], fresh[name])


def test_hooks_train_what_runs(tmp_path: Path) -> None:
    model = build(tmp_path, 'neck', learn=BOTH)
    for task in BOTH:
        select_task(model, task)
        found = {id(p) for p in head_parameters(model)}
        assert {name for name, p in model.named_parameters()
                if id(p) in found} == {
                    name for name in learning(model)
                    if f'.{task}' in name or 'neck.projections' in name}

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Several tasks trained at once over one bank, and hooks that take one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import Runner

from _multitask import TASKS, build, loader
from _tiny import DIMS, SIZE, fusion_neck, model_cfg, same, snapshot

WEIGHED = dict(cls=['a', 'b'], det=['b'], seg=['a', 'c'])


@pytest.fixture(scope='module')
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A trunk's weights, and a zoo of three modules."""
    from _tiny import add_modules, build_backbone, save_trunk
    from vim_mm.zoo import save_module
    folder = tmp_path_factory.mktemp('parts')
    trunk = save_trunk(folder / 'trunk.pth')
    backbone = build_backbone(trunk)
    add_modules(backbone, *'abc', std=0.1)
    for name in 'abc':
        save_module(backbone, name, str(folder / 'zoo'))
    return dict(trunk=trunk, zoo=str(folder / 'zoo'), modules=[*'abc'])


def with_modules(parts: dict, **kwargs: Any) -> ConfigDict:
    backbone = dict(
        type='vim_mm.ViMBackbone',
        probe_size=SIZE,
        tune_modules=True,
        fusion=dict(type='EnsMoE', tasks=WEIGHED))
    tasks = {}
    for kind in TASKS:
        tasks[kind] = model_cfg(kind, {}, fusion_neck(kind))
        tasks[kind].pop('neck')
        if kind == 'cls':
            tasks[kind].neck = dict(
                type='vim_mm.StandardizedPooling', in_channels='auto')
            tasks[kind].head.in_channels = 'auto'
        if kind == 'det':
            tasks[kind].neck = dict(
                type='FPN',
                in_channels='auto',
                out_channels=DIMS,
                start_level=2,
                num_outs=1)
    return ConfigDict(
        type='vim_mm.MultiTaskModel',
        backbone={
            **backbone,
            **parts,
            **kwargs
        },
        tasks=tasks)


def run(folder: Path, parts: dict, *hooks: dict, **kwargs: Any) -> Runner:
    return build(
        folder,
        8,
        model=with_modules(parts),
        custom_hooks=list(hooks),
        **kwargs)


def test_all_tasks_learn_at_once(tmp_path: Path, parts: dict) -> None:
    runner = run(tmp_path, parts, dict(type='vim_mm.GateLogHook', interval=4))
    model = runner.model
    trunk, before = snapshot(model.backbone.trunk), snapshot(model)
    assert model.backbone.learning == TASKS
    runner.train()
    assert same(trunk, snapshot(model.backbone.trunk))
    after = snapshot(model)
    for task in TASKS:
        key = f'backbone.fusion.logits.{task}'
        moved = not torch.equal(before[key], after[key])
        assert moved or task == 'det', key  # det weighs one module only
    for name in 'abc':
        keys = [
            k for k in after if k.startswith(f'backbone.bank.members.{name}')
        ]
        assert any(not torch.equal(before[k], after[k]) for k in keys)
    logged = (tmp_path.glob('*/vis_data/scalars.json'))
    assert 'gates/seg/' in next(logged).read_text()


def test_modules_of_idle_tasks_are_not_moved(parts: dict) -> None:
    from _multitask import TaskPictures
    from vim_mm.registry import MODELS
    model = MODELS.build(with_modules(parts))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.5)
    optimizer.register_step_pre_hook(lambda *_: model.drop_idle_grads())
    for task in (*TASKS, 'det'):
        before = snapshot(model)
        data = dict(TaskPictures(task).batch(), task=task)
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        model.parse_losses(losses)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {
        key
        for key, value in snapshot(model).items()
        if not torch.equal(value, before[key])
    }
    assert any(key.startswith('backbone.bank.members.b') for key in moved)
    others = ('backbone.bank.members.a', 'backbone.bank.members.c',
              'backbone.fusion.logits.cls', 'backbone.fusion.logits.seg',
              'models.cls', 'models.seg')
    assert not [key for key in moved if key.startswith(others)]


HOOKS = [
    dict(type='vim_mm.ScoreGatesHook', num_extra_tokens=0),
    dict(type='vim_mm.HoldOutGatesHook', steps=2, num_extra_tokens=0,
         keep_better=False),
    dict(type='vim_mm.WarmHeadHook', epochs=1),
]


@pytest.mark.parametrize('hook', HOOKS, ids=lambda hook: hook['type'])
def test_hooks_that_prepare_take_a_task(tmp_path: Path, parts: dict,
                                        hook: dict) -> None:
    runner = run(tmp_path, parts, dict(hook, task='seg'), dict(type='EMAHook'))
    runner.model.init_weights()
    before = snapshot(runner.model)
    seen = {}

    def stop(*_: Any, **__: Any) -> None:
        seen.update(snapshot(runner.model))
        raise KeyboardInterrupt

    runner.model.train_step = stop
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    moved = {k for k in seen if not torch.equal(seen[k], before[k])}
    assert moved and all('seg' in key or '.running_' in key for key in moved)
    ema = runner.hooks[[type(h).__name__
                        for h in runner.hooks].index('EMAHook')]
    assert same(runner.model.state_dict(), ema.ema_model.module.state_dict())


@pytest.mark.parametrize(
    'hook', [
        *HOOKS,
        dict(type='vim_mm.ModuleHeadHook', module='a', zoo='zoo'),
        dict(
            type='vim_mm.ModuleToZooHook',
            zoo='zoo',
            dataset='d',
            task='det',
            licence='MIT')
    ],
    ids=lambda hook: hook['type'])
def test_hooks_refuse_a_model_of_several_tasks(tmp_path: Path, parts: dict,
                                               hook: dict) -> None:
    with pytest.raises(ValueError, match='set its `task`|of one task'):
        run(tmp_path, parts, hook).train()
    if 'task' not in hook:
        with pytest.raises(ValueError, match="There is no task 'pose'"):
            run(tmp_path, parts, dict(hook, task='pose')).train()


def test_tasks_that_a_fusion_does_not_know(parts: dict) -> None:
    from vim_mm.registry import MODELS
    fusion = dict(type='EnsMoE', tasks=dict(cls=['a'], det=['b']))
    with pytest.raises(ValueError, match="no task 'seg'; ViMBackbone knows"):
        MODELS.build(with_modules(parts, fusion=fusion))


def test_one_task_is_folded_or_ranked_alone(tmp_path: Path,
                                            parts: dict) -> None:
    import runpy

    from mmengine.config import Config

    from vim_mm.apis.ranking import rank_modules
    from vim_mm.models import build_model
    from vim_mm.zoo import Zoo
    cfg = Config(
        dict(
            model=with_modules(parts),
            train_dataloader={task: loader(task)
                              for task in TASKS},
            default_scope='vim_mm'))
    cfg.model.backbone.fusion.type = 'LinearMoE'
    with pytest.raises(ValueError, match='is of the tasks .* for one; give'):
        rank_modules(cfg, parts['zoo'])

    cfg.module_card = dict(task='seg', dataset='d', licence='MIT')
    cfg.dump(tmp_path / 'run.py')
    model = build_model(cfg)
    torch.save(
        dict(state_dict=model.state_dict()), tmp_path / 'checkpoint.pth')
    root = Path(__file__).resolve().parents[3]
    main = runpy.run_path(str(root / 'tools' / 'bake.py'))['main']
    main([
        str(tmp_path / 'run.py'),
        str(tmp_path / 'checkpoint.pth'), '--zoo',
        str(tmp_path / 'zoo'), '--name', 'folded', '--task', 'seg'
    ])
    assert 'folded' in Zoo(tmp_path / 'zoo')

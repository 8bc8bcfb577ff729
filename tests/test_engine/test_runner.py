# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What runners of mmengine look at, built from Python without a tool."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine._strategy import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.model import BaseTTAModel
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import FlexibleRunner, Runner

from _tiny import Pictures, build_runner, first_of, model_cfg, vit
from vim_mm.engine import hooks
from vim_mm.engine import runner as guards
from vim_mm.engine.divided import check_whole_hooks
from vim_mm.engine.hooks import GuardHook
from vim_mm.engine.hooks.guard_hook import recompute_trunks
from vim_mm.engine.strategies import DeepSpeedStrategy as OwnDeepSpeed
from vim_mm.engine.strategies import FSDPStrategy as OwnFSDP
from vim_mm.registry import MODELS
from vim_mm.utils.config import type_name

PARTS = ('train', 'val', 'test')


class Merging(BaseTTAModel):
    """Predicts several views of an image."""

    def merge_preds(self, data_samples_list: list) -> list:
        raise NotImplementedError


def model() -> dict:
    return model_cfg(
        'cls', dict(trunk=vit(), new_module='n'),
        dict(type='mmpretrain.GlobalAveragePooling'))


def judged(work_dir: Path, **kwargs) -> Runner:
    """A runner that can train, validate and test."""
    loader = dict(
        dataset=Pictures('cls'),
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='pseudo_collate'))
    cfg = dict(kwargs)
    for part in ('val', 'test'):
        cfg.setdefault(f'{part}_dataloader', loader)
        cfg[f'{part}_evaluator'] = dict(type='Accuracy')
        cfg[f'{part}_cfg'] = dict()
    return build_runner('cls', model(), work_dir, iters=1, **cfg)


@pytest.mark.parametrize('first', first_of([
    'import vim_mm.engine.runner', 'import mmengine.runner, vim_mm',
    'import vim_mm, mmengine.runner', 'import vim_mm.engine.hooks',
    'import vim_mm.apis']))
def test_whatever_is_imported_first_runners_are_guarded(first: str) -> None:
    check = ('from mmengine.runner import Runner; '
             'assert Runner.train.preceded_by')
    subprocess.run([sys.executable, '-c', f'{first}; {check}'], check=True)


def test_guarding_twice_changes_nothing() -> None:
    before = Runner.train, FlexibleRunner.train
    guards.guard_runner()
    assert before == (Runner.train, FlexibleRunner.train)


@pytest.mark.parametrize('kind', [DeepSpeedStrategy, FSDPStrategy])
def test_no_averages_of_parts(kind: type) -> None:
    run = SimpleNamespace(strategy=kind.__new__(kind), hooks=[EMAHook()])
    with pytest.raises(ValueError, match='EMAHook averages whole tensors'):
        check_whole_hooks(run)
    run.strategy = DDPStrategy.__new__(DDPStrategy)
    check_whole_hooks(run)
    check_whole_hooks(SimpleNamespace(hooks=run.hooks))


#: Hooks that read counters, losses or whole checkpoints alone.
OF_PARTS = {'CostHook', 'ExactHook', 'FiniteLossHook', 'FrozenTrunkHook',
            'FunctionHook', 'GuardHook', 'NormEvalHook', 'RoutingLogHook',
            'StopHook', 'StudentHook', 'SummaryHook'}


@pytest.mark.parametrize('name', sorted(hooks.__all__))
def test_hooks_of_whole_tensors(name: str) -> None:
    """Of parts they would prepare, log or publish something else."""
    kind = getattr(hooks, name)
    zero = DeepSpeedStrategy.__new__(OwnDeepSpeed)
    run = SimpleNamespace(hooks=[kind.__new__(kind)], strategy=zero)
    for stage in (0, 2):
        zero.config = dict(zero_optimization=dict(stage=stage))
        check_whole_hooks(run)
    zero.config = dict(zero_optimization=dict(stage=3))
    for strategy in (zero, OwnFSDP.__new__(OwnFSDP)):
        run.strategy = strategy
        if name in OF_PARTS:
            check_whole_hooks(run)
            continue
        with pytest.raises(ValueError, match=f'{name} works with whole .*, of '
                           f'which {type(strategy).__name__} gives'):
            check_whole_hooks(run)


@pytest.mark.parametrize('part', PARTS)
def test_missing_data_is_named_before_loops_are_built(part: str,
                                                      tmp_path: Path) -> None:
    gone = dict(
        batch_size=1,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=dict(
            type='mmpretrain.CustomDataset', data_root=str(tmp_path / 'no')))
    run = judged(tmp_path, **{f'{part}_dataloader': gone})
    with pytest.raises(FileNotFoundError, match=f'{part}_dataloader.dataset'):
        getattr(run, part)()
    assert isinstance(run._train_loop, dict)


@pytest.mark.parametrize('kind', ['AmpOptimWrapper',
                                  'mmengine.AmpOptimWrapper',
                                  AmpOptimWrapper])
def test_a_run_for_gpus_trains_on_cpu(kind: object, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, 'get_device', lambda: 'cpu')
    wrapper = dict(
        type=kind,
        loss_scale='dynamic',
        dtype='float16',
        optimizer=dict(type='SGD', lr=0.1))
    run = build_runner(
        'cls', model(), tmp_path, iters=1, optim_wrapper=wrapper)
    run.train()
    assert run.iter == 1 and type(run.optim_wrapper).__name__ == 'OptimWrapper'
    monkeypatch.setattr(guards, 'get_device', lambda: 'cuda')
    cfg = Config(dict(wrapper=dict(type=kind))).wrapper
    guards.keep_float32_on_cpu(cfg)
    assert type_name(cfg) == 'AmpOptimWrapper'


@pytest.mark.parametrize('part', ['val', 'test'])
@pytest.mark.parametrize('wrap', [False, True])
def test_what_was_not_learned_is_not_judged(part: str, wrap: bool,
                                            tmp_path: Path) -> None:
    first = judged(tmp_path)
    first.train()
    path = tmp_path / 'iter_1.pth'
    assert getattr(
        judged(tmp_path, load_from=str(path)), part)()
    saved = torch.load(path, weights_only=False)
    del saved['state_dict']['head.fc.weight']
    torch.save(saved, path)
    run = judged(tmp_path, load_from=str(path))
    if wrap:
        run.model = Merging(run.model)
    with pytest.raises(ValueError, match='iter_1.pth lacks 1 tensors.*head'):
        getattr(run, part)()
    if not wrap:  # training may start from less
        judged(tmp_path / 'next', load_from=str(path)).train()


@pytest.mark.parametrize('part', ['val', 'test'])
def test_classes_in_another_order_are_not_judged(part: str,
                                                 tmp_path: Path) -> None:
    judged(tmp_path).train()
    path = tmp_path / 'iter_1.pth'
    saved = torch.load(path, weights_only=False)
    saved['meta']['dataset_meta'] = dict(classes=('b', 'a'))
    torch.save(saved, path)
    run = judged(tmp_path, load_from=str(path))
    loader = getattr(run, f'_{part}_dataloader')
    loader['dataset'].metainfo = dict(classes=('a', 'b'))
    with pytest.raises(ValueError, match='iter_1.pth numbers its classes'):
        getattr(run, part)()


def test_the_guard_comes_first(tmp_path: Path) -> None:
    assert isinstance(judged(tmp_path).hooks[0], GuardHook)


@pytest.mark.parametrize('names', [
    'backbone', 'backbone.trunk', ['backbone.trunk.layers.1'],
    ['backbone.trunk.layers.0', 'backbone.trunk.layers.1']
])
def test_activation_checkpointing_of_a_frozen_trunk(names: object,
                                                    tmp_path: Path) -> None:
    """mmengine's is reentrant: no gradient would reach the modules."""
    seen = []
    for index, asked in enumerate((None, names)):
        run = build_runner(
            'cls', model(), tmp_path / str(index), iters=2,
            cfg=dict(activation_checkpointing=asked))
        layer = run.model.backbone.trunk.layers[1].ln1
        calls = []
        layer.register_forward_hook(lambda *_: calls.append(1))
        run.train()
        bank = run.model.backbone.bank
        seen.append((len(calls), [p.detach() for p in bank.parameters()]))
    (once, plain), (twice, recomputed) = seen
    # besides one blank image that shows whether the neck fits
    assert twice - 1 == 2 * (once - 1)
    assert all(map(torch.equal, plain, recomputed))
    assert run.cfg['activation_checkpointing'] is None


def test_other_parts_are_left_to_mmengine() -> None:
    init_default_scope('mmpretrain')
    parts = MODELS.build(model())
    for left in (['head'], ['neck', 'backbones']):
        cfg = Config(dict(activation_checkpointing=['backbone', *left]))
        recompute_trunks(parts, cfg)
        assert cfg.activation_checkpointing == left
    before = Config(dict(activation_checkpointing='head'))
    recompute_trunks(parts, before)
    assert before.activation_checkpointing == 'head'

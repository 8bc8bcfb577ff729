# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Baselines differ from the fused config in what they say, and no more."""

from copy import deepcopy

import pytest
from mmengine.config import Config

from vim_mm.report.variants import baselines, judged_once, variants

LINEAR = dict(type='LinearMoE')
NECK = dict(
    type='vim_mm.ViMFusionNeck', modules=['a', 'b'], fusion=LINEAR, task='x')


def fused() -> Config:
    return Config(
        dict(
            model=dict(
                head=dict(type='H'),
                backbone=dict(
                    type='vim_mm.ViMBackbone',
                    modules=['a', 'b'],
                    fusion=dict(type='LinearMoE'))),
            train_cfg=dict(max_epochs=3),
            test_dataloader=dict(dataset='test'),
            test_evaluator=dict(type='E'),
            param_scheduler=dict(type='S'),
            custom_hooks=[
                dict(type='vim_mm.ScoreGatesHook'),
                dict(type='vim_mm.HoldOutGatesHook'),
                dict(type='vim_mm.BetterGatesHook'),
                dict(type='vim_mm.WarmHeadHook', epochs=7)
            ]))


def hooks(cfg: Config) -> set:
    return {hook['type'].split('.')[-1] for hook in cfg.custom_hooks}


def test_variants() -> None:
    cfg = fused()
    found = {v.methods: v.cfg for v in variants(cfg)}
    assert list(found) == [
        ('frozen trunk', ), ('single: a', ), ('single: b', ),
        ('uniform gates', 'Ens-MoE, trained from uniform'),
        ('score-started gates', 'trained from scores')
    ]
    for methods, variant in found.items():
        backbone = variant.model.backbone
        trained = len(methods) == 2
        assert backbone.modules == {
            'frozen trunk': [],
            'single: a': ['a'],
            'single: b': ['b']
        }.get(methods[0], ['a', 'b'])
        assert (backbone.fusion and dict(backbone.fusion)) == {
            'uniform gates': dict(type='vim_mm.EnsMoE'),
            'score-started gates': dict(type='LinearMoE')
        }.get(methods[0])
        starts = {'ScoreGatesHook', 'HoldOutGatesHook', 'BetterGatesHook'}
        assert len(starts & hooks(variant)) == 3 * ('score' in methods[0])
        warm = variant.custom_hooks[-1]
        # every head sees the few pictures in as many epochs
        assert warm.epochs * (1 + warm.get('again', False)) + \
            variant.train_cfg.max_epochs == 17
        assert (variant.train_cfg.max_epochs == 3) == trained
        assert warm.evaluate and variant.val_dataloader == cfg.test_dataloader
        assert variant.model.head == cfg.model.head
    assert cfg.to_dict() == fused().to_dict()  # the input is not touched


# ------------------------------------------------------------ any fused task


def any_config(place: str = 'trunk', **changes) -> Config:
    backbone = dict(
        type='vim_mm.ViMBackbone',
        trunk=dict(
            type='T', init_cfg=dict(type='Pretrained', checkpoint='x')),
        zoo='zoo',
        modules=['a', 'b'],
        new_module='n',
        fusion=dict(LINEAR, tasks=['x']),
        task='x')
    model = dict(backbone=backbone, neck=dict(type='FPN'), head=dict(type='H'))
    if place != 'trunk':
        backbone.update(fusion=None, task=None)
        model['neck'] = NECK if place == 'neck' else [NECK, dict(type='FPN')]
    hooks = [
        dict(type='vim_mm.ScoreGatesHook'),
        dict(type='WarmHeadHook', epochs=7, evaluate=True),
        dict(type='vim_mm.BetterGatesHook'),
        dict(type='GateLogHook'),
        dict(type='vim_mm.ModuleToZooHook', zoo='zoo'),
        dict(type='EarlyStoppingHook', monitor='mIoU')
    ]
    cfg = dict(
        model=deepcopy(model),
        train_cfg=dict(by_epoch=True, max_epochs=30, dynamic_intervals=[]),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', save_best='mIoU')),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)),
        val_dataloader=dict(dataset='val'),
        val_evaluator=dict(type='V'),
        test_dataloader=dict(dataset='test'),
        test_evaluator=dict(type='E'),
        custom_hooks=hooks,
        resume=True)
    return Config(dict(cfg, **changes))


@pytest.mark.parametrize('hooks_of_a_run', [None, {}, dict(checkpoint=None)])
def test_a_run_without_checkpoints_is_judged_once(hooks_of_a_run) -> None:
    cfg = any_config(default_hooks=hooks_of_a_run)
    assert judged_once(cfg).default_hooks == hooks_of_a_run


def found(cfg: Config, **settings) -> dict:
    return {v.methods[0]: v for v in baselines(cfg, **settings)}


@pytest.mark.parametrize('place', ['trunk', 'neck', 'list of necks'])
def test_baselines(place: str) -> None:
    cfg = any_config(place)
    methods = found(cfg)
    assert list(methods) == [
        'frozen trunk', 'single: a', 'single: b', 'uniform', 'recommended'
    ]
    for name, variant in methods.items():
        own, backbone = variant.cfg, variant.cfg.model.backbone
        neck = own.model.neck
        neck = neck[0] if isinstance(neck, list) else neck
        part = backbone if place == 'trunk' else neck
        alone = {'frozen trunk': [], 'single: a': ['a'], 'single: b': ['b']}
        if name in alone:
            assert backbone.modules == alone[name]
            assert not backbone.fusion and not backbone.new_module
            assert not backbone.task and not neck.get('task')
            assert not neck.get('modules')
            assert hooks(own) == {'WarmHeadHook'}
        else:
            assert part.modules == ['a', 'b']
            assert part.fusion.type == dict(
                uniform='vim_mm.FixedFusion', recommended='LinearMoE')[name]
            assert part.fusion.get('tasks') == (
                ['x'] if place == 'trunk' else None)
            weighing = {'ScoreGatesHook', 'BetterGatesHook', 'GateLogHook'}
            assert hooks(own) == {'WarmHeadHook'} | (
                weighing if name == 'recommended' else set())
        # trained alike, and judged once, by what none has chosen by
        assert own.train_cfg == dict(
            by_epoch=True, max_epochs=30, val_begin=1, val_interval=30)
        assert own.val_dataloader == cfg.test_dataloader
        assert own.val_evaluator == cfg.test_evaluator
        assert own.resume is False
        assert 'save_best' not in own.default_hooks.checkpoint
        assert not own.custom_hooks[-1].get('evaluate')
        # gates that are replaced let the head learn again: so do all
        assert warming(own).again
        assert own.model.head == cfg.model.head
    assert cfg.to_dict() == any_config(place).to_dict()  # it is not touched


def warming(cfg: Config) -> dict:
    return next(h for h in cfg.custom_hooks if h['type'] == 'WarmHeadHook')


@pytest.mark.parametrize(('kinds', 'again'), [
    (('ScoreGatesHook', 'WarmHeadHook'), False),
    (('HoldOutGatesHook', 'WarmHeadHook', 'BetterGatesHook'), True),
    (('WarmHeadHook', ), True)])
def test_heads_learn_equally_long(kinds: tuple, again: bool) -> None:
    cfg = any_config(custom_hooks=[dict(type=kind) for kind in kinds])
    assert {bool(warming(variant.cfg).get('again'))
            for variant in found(cfg).values()} == {again}


@pytest.mark.parametrize('place', ['trunk', 'neck'])
@pytest.mark.parametrize('hooks_before', [None, [dict(type='GateLogHook')]])
def test_one_that_does_not_start_from_scores(place, hooks_before) -> None:
    cfg = any_config(place, custom_hooks=hooks_before)
    methods = found(cfg, singles=['b'])
    assert list(methods) == ['frozen trunk', 'single: b', 'uniform',
                             'as configured', 'recommended']
    assert 'ScoreGatesHook' not in hooks(methods['as configured'].cfg)
    recommended = methods['recommended'].cfg
    assert recommended.custom_hooks[0]['type'] == 'vim_mm.ScoreGatesHook'
    assert recommended.custom_hooks[-1]['type'] == 'vim_mm.BetterGatesHook'
    part = recommended.model[dict(trunk='backbone', neck='neck')[place]]
    assert part.fusion.type == 'vim_mm.LinearMoE'


@pytest.mark.parametrize('place', ['trunk', 'neck'])
@pytest.mark.parametrize('rates', [
    None, dict(custom_keys=dict(head=dict(lr_mult=10.))),
    dict(custom_keys=dict(backbone=dict(lr_mult=.5)))
])
def test_full_fine_tuning(place: str, rates: dict) -> None:
    cfg = any_config(place)
    if rates:
        cfg.optim_wrapper.paramwise_cfg = rates
    *_, variant = baselines(cfg, full=True)
    assert variant.methods == ('full fine-tuning', )
    assert variant.cfg.model.backbone == dict(type='T')
    assert variant.trunk == cfg.model.backbone.trunk  # its weights
    keys = variant.cfg.optim_wrapper.paramwise_cfg.custom_keys
    given = (rates or {}).get('custom_keys', {})
    assert keys == dict(dict(backbone=dict(lr_mult=.1)), **given)
    assert hooks(variant.cfg) == {'WarmHeadHook'}


def test_configs_without_test_images_are_judged_on_others() -> None:
    cfg = any_config(test_dataloader=None, test_evaluator=None)
    assert judged_once(cfg).val_dataloader == cfg.val_dataloader
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='neither a test_dataloader nor'):
        judged_once(cfg)


@pytest.mark.parametrize('train_cfg', [
    dict(by_epoch=False, max_iters=9, val_interval=2),
    dict(type='IterBasedTrainLoop', max_iters=9),
])
def test_schedules_in_iterations(train_cfg: dict) -> None:
    cfg = judged_once(any_config(train_cfg=train_cfg))
    assert cfg.train_cfg.val_interval == 9


@pytest.mark.parametrize(('change', 'said'), [
    (dict(modules=[]), 'weighs no modules'),
    (dict(fusion=None), 'weighs no modules'),
    (dict(type='mmdet.ResNet'), "is 'mmdet.ResNet'; modules plug into"),
])
def test_configs_that_fuse_nothing_are_refused(change: dict,
                                               said: str) -> None:
    cfg = any_config()
    cfg.model.backbone.update(change)
    with pytest.raises(ValueError, match=said):
        baselines(cfg)
    with pytest.raises(ValueError, match='backbone of this config is None'):
        baselines(any_config(model=dict(type='M')))

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Keys that are nearly one that is read are refused, helpers are not."""

from typing import Optional

import pytest
from mmengine.config import Config

from _loading import lines
from vim_mm.utils import keys, known_keys
from vim_mm.utils.config import read_config
from vim_mm.utils.keys import check_keys


@pytest.mark.parametrize(('cfg', 'meant'), [
    # helpers of configs of the libraries
    (dict(train_pipeline=[], dataset_type='x', data_root='y'), None),
    (dict(val_evaluator={}, val_evaluator_abs={}), None),
    (dict(model={}, models=[]), None),
    (dict(optimizer={}, conv_cfg={}, optimizer_config={}), None),
    (dict(resume_from=None), None),
    (dict(randomness=dict(seed=1), env_cfg=dict(own=1)), None),
    (dict(default_hooks=dict(mine={}, checkpoint={})), None),
    (dict(train_dataloader=dict(cls={}, det={})), None),
    (dict(optim_wrapper=dict(paramwise_cfg=dict(decay_rate=.9))), None),
    (dict(model=dict(test_cfg=dict(own=1, score_thr=.1))), None),
    # slips
    (dict(model=dict(tasks=dict(a=dict(test_cfg=dict(score_tr=.1))))),
     'model.tasks.a.test_cfg.score_thr'),
    *[(dict(model=dict(test_cfg=dict(rcnn={other: .1}))),
       f'perhaps `model.test_cfg.rcnn.{key}` is meant')
      for other, key in (('score_threshold', 'score_thr'),
                         ('iou_threshold', 'iou_thr'))],
    (dict(custom_hook=[]), 'custom_hooks'),
    (dict(custom_hooks=[], custom_hoks=[]), 'custom_hooks'),
    (dict(param_schedulers=[]), 'param_scheduler'),
    (dict(resume_from='x'), '`load_from` and'),
    (dict(lr_config={'a': 1}), '`param_scheduler`'),
    (dict(default_hooks=dict(loger={})), 'default_hooks.logger'),
    (dict(auto_scale_lr=dict(enabled=True)), 'auto_scale_lr.enable'),
    (dict(test_dataloader=dict(dataset={}, batch_sizes=1)),
     'test_dataloader.batch_size'),
    (dict(optim_wrapper=dict(clip_grad=dict(maxnorm=1))), 'grad.max_norm'),
    (dict(optim_wrapper=dict(paramwise_cfg=dict(
        custom_keys={'a.b': dict(decay_mul=0.)}))),
     r"custom_keys\['a.b'\].decay_mult"),
])
def test_of_a_config(cfg: dict, meant: Optional[str]) -> None:
    if meant is None:
        check_keys(Config(cfg))
        return
    with pytest.raises(ValueError, match=meant):
        check_keys(Config(cfg))


@pytest.mark.parametrize(('cfg', 'words'), [
    (dict(env_cfg=dict(cudnn_bench=True)),
     'Nobody reads `env_cfg.cudnn_bench`; mmengine reads cudnn_benchmark,'),
    (dict(auto_scale_lr=dict(base=2)), 'Nobody reads `auto_scale_lr.base`'),
    (dict(seed=3), '`seed` is read no more, and there is no `randomness`'),
    (dict(seed=3, randomness=dict(seed=3)), None),
    (dict(env_cfg=dict(cudnn_benchmark=True), optimizer=None), None),
    (dict(param_scheduler=[], param_schedulers=[]),
     'Nobody reads `param_schedulers`, beside `param_scheduler`'),
    (dict(val_evaluator={}, val_evaluators={}),
     'Nobody reads `val_evaluators`'),
])
def test_keys_that_nobody_reads(cfg: dict, words: Optional[str],
                                monkeypatch: pytest.MonkeyPatch) -> None:
    told = lines(monkeypatch, keys)
    check_keys(Config(cfg))
    assert len(told) == (words is not None)
    assert words is None or told[0].startswith(words)


@pytest.mark.parametrize(('option', 'words'), [
    ('optimizer.lr', 'read no more; use `optim_wrapper`'),
    ('data.samples_per_gpu', 'read no more; use `train_dataloader`'),
    ('lr_config.policy', 'read no more; use `param_scheduler`'),
    ('param_schedulers.type', '`param_scheduler` is meant'),
    ('custom_hook', '`custom_hooks` is meant'),
])
def test_options_that_nobody_reads(option: str, words: str) -> None:
    cfg = dict(model={}, optim_wrapper={}, param_scheduler={})
    with pytest.raises(ValueError, match=words):
        read_config(cfg, {option: 3})


@pytest.mark.parametrize(('option', 'told'), [
    ('max_iters', True), ('lr', True), ('max_epochs.a', True),
    ('zoo', False), ('work_dir', False), ('resume', False),
    ('train_pipeline', False), ('optim_wrapper.optimizer.lr', False),
])
def test_options_that_are_new(option: str, told: bool,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    said = lines(monkeypatch, known_keys)
    cfg = dict(model={}, optim_wrapper={}, train_pipeline=[])
    read_config(cfg, {option: 3})
    assert [f'give `{option}`' in each for each in said] == [True] * told

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Baselines differ from the fused config in what they say, and no more."""

import pytest
from mmengine.config import Config

from vim_mm.apis.comparison import (peak_memory_mb, reset_peak_memory,
                                    variants)


def fused() -> Config:
    return Config(
        dict(
            model=dict(
                head=dict(type='H'),
                backbone=dict(
                    modules=['a', 'b'], fusion=dict(type='EnsMoE'))),
            train_cfg=dict(max_epochs=3),
            param_scheduler=dict(type='S'),
            custom_hooks=[
                dict(type='vim_mm.ScoreGatesHook'),
                dict(type='vim_mm.WarmHeadHook', epochs=7)
            ]))


def hooks(cfg: Config) -> set:
    return {hook['type'].split('.')[-1] for hook in cfg.custom_hooks}


def test_variants() -> None:
    cfg = fused()
    found = {v.method: v.cfg for v in variants(cfg)}
    assert list(found) == [
        'frozen trunk', 'single: a', 'single: b', 'uniform gates',
        'score-started gates', 'Ens-MoE, trained from uniform',
        'Ens-MoE, trained from scores'
    ]
    assert found['frozen trunk'].model.backbone.modules == []
    assert found['single: b'].model.backbone.modules == ['b']
    for method, variant in found.items():
        backbone = variant.model.backbone
        trained = 'trained' in method
        assert variant.train_cfg.max_epochs == (3 if trained else 0)
        assert (backbone.fusion is None) == (len(backbone.modules) < 2)
        assert ('ScoreGatesHook' in hooks(variant)) == ('score' in method)
        warm = variant.custom_hooks[-1].epochs
        assert warm == (0 if 'from uniform' in method else 7)
        assert variant.model.head == cfg.model.head
    assert cfg.to_dict() == fused().to_dict()  # the input is not touched


def test_peak_memory_is_per_method() -> None:
    try:
        open('/proc/self/clear_refs', 'w').close()
    except OSError:
        pytest.skip('this system cannot reset a peak')
    block = bytearray(200 << 20)
    high = peak_memory_mb()
    del block
    reset_peak_memory()
    assert peak_memory_mb() < high - 150

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Scores that are computed once, whoever asks."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from _tiny import (SCOPES, Pictures, add_modules, build_backbone, build_runner,
                   fusion_neck, model_cfg, save_trunk)
from vim_mm.apis import rank_modules
from vim_mm.engine.hooks import ScoreGatesHook
from vim_mm.features.score_cache import ScoreCache, digest
from vim_mm.zoo import save_module


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / 'new', 'x')
    assert cache.get(('ridge', (0., .5))) is None
    cache.put(('ridge', (0., .5)), [.25, 1., -1.])
    again = ScoreCache(tmp_path / 'new', 'x')
    assert again.get(('ridge', (0., .5))) == [.25, 1., -1.]
    assert again.get(('ridge', (.5, 0.))) is None
    assert ScoreCache(tmp_path / 'new', 'y').get(('ridge', (0., .5))) is None
    (tmp_path / 'new/x.json').write_text('{"half')
    assert ScoreCache(tmp_path / 'new', 'x').get(('ridge', (0., .5))) is None
    nowhere = ScoreCache(None, 'x')
    nowhere.put('a', [1.])
    assert nowhere.get('a') == [1.]


@pytest.mark.parametrize('other', [
    [torch.ones(2), 'a '], [torch.ones(2).double(), 'a'],
    [torch.ones(1, 2), 'a'], [torch.tensor([1., 1.0001]), 'a']
])
def test_a_name_changes_with_what_it_is_of(other: list) -> None:
    assert digest([torch.ones(2), 'a']) == digest([torch.ones(2), 'a'])
    assert digest(other) != digest([torch.ones(2), 'a'])


def test_ranking_and_hook_share_one(tmp_path: Path) -> None:
    """The hook looks at the images once, and runs no module."""
    DATASETS.register_module('TinyPictures', force=True, module=Pictures)
    trunk = save_trunk(tmp_path / 'trunk.pth')
    midstream = build_backbone(trunk)
    add_modules(midstream, 'a', 'b', std=.05)
    for name in 'ab':
        save_module(midstream, name, str(tmp_path / 'zoo'))
    backbone = dict(trunk=trunk, zoo=str(tmp_path / 'zoo'), modules=['a', 'b'],
                    fusion=dict(type='vim_mm.LinearMoE'))
    model = model_cfg('seg', backbone, fusion_neck('seg'))
    loader = dict(
        dataset=dict(type='mmengine.TinyPictures', kind='seg', num=8),
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=True),
        collate_fn=dict(type='pseudo_collate'))
    hook = dict(type='vim_mm.ScoreGatesHook', num_extra_tokens=0)
    cfg = Config(
        dict(default_scope=SCOPES['seg'], model=model,
             train_dataloader=loader, custom_hooks=[hook]))
    folder = str(tmp_path / 'scores')
    ranked = rank_modules(
        cfg, backbone['zoo'], fuse=True, cache=folder)
    run = build_runner('seg', model, tmp_path / 'run', iters=1,
                       train_dataloader=loader)
    seen = []
    run.model.backbone.trunk.register_forward_pre_hook(
        lambda _, inputs: seen.append(len(inputs[0])))
    ScoreGatesHook(num_extra_tokens=0, cache=folder).before_train(run)
    # the trunk once, and what tells whether features are linear
    assert sum(seen) == 8 + 3 * 2
    weights = run.message_hub.get_info('module_weights')
    assert weights == ranked.weights
    DATASETS._module_dict.pop('TinyPictures')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The head learns on cached features before the run's first step."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner

from _tiny import (DIMS, KINDS, SIZE, Pictures, build_runner, fusion_neck,
                   losses, model_cfg, same, save_trunk, snapshot, vit)
from vim_mm.engine.hooks import WarmHeadHook
from vim_mm.engine.hooks.warm_head_hook import head_parameters
from vim_mm.features import places
from vim_mm.features.cache import cache_features
from vim_mm.features.loaders import finite


def runner(kind: str, folder: Path, neck: dict = None, **kwargs) -> Runner:
    backbone = dict(
        trunk=save_trunk(folder / 'trunk.pth'), new_module='n')
    model = model_cfg(kind, backbone, neck or fusion_neck(kind))
    hooks = kwargs.pop('hooks', [])
    return build_runner(kind, model, folder, custom_hooks=hooks, **kwargs)


@pytest.mark.parametrize('kind', KINDS)
def test_the_first_loss_is_lower(kind: str, tmp_path: Path) -> None:
    first = []
    for folder, hooks in (('cold', []),
                          ('warm', [dict(type='vim_mm.WarmHeadHook',
                                         epochs=25, optimizer=dict(
                                             type='AdamW', lr=1e-2))])):
        (tmp_path / folder).mkdir()
        run = runner(kind, tmp_path / folder, hooks=hooks, iters=1, lr=1e-60)
        before = snapshot(run.model.backbone)
        run.train()
        assert same(snapshot(run.model.backbone), before)
        first.append(float(losses(run)[0]))
    assert first[1] < 0.7 * first[0]


def test_standardisers_are_fitted(tmp_path: Path) -> None:
    neck = dict(
        type='vim_mm.StandardizedPooling',
        in_channels=6 * DIMS,
        num_extra_tokens=0)
    run = runner('cls', tmp_path, neck)
    run.model.head.fc = torch.nn.Linear(6 * DIMS, 2)
    WarmHeadHook(epochs=0).before_train(run)
    pooled = torch.cat([
        run.model.neck(run.model.backbone(
            run.model.data_preprocessor(data, True)['inputs']))[0]
        for data in finite(run.train_dataloader)
    ])
    torch.testing.assert_close(
        pooled.mean(0), torch.zeros(6 * DIMS), atol=1e-3, rtol=0)


def test_a_resumed_run_is_not_warmed_again(tmp_path: Path) -> None:
    run = runner('cls', tmp_path)
    run.train_loop._iter = 3
    before = snapshot(run.model)
    WarmHeadHook(epochs=5).before_train(run)
    assert same(snapshot(run.model), before)


def test_parameters_of_the_head(tmp_path: Path) -> None:
    run = runner('cls', tmp_path)
    run.model.head.fc.bias.requires_grad_(False)
    expected = {id(run.model.head.fc.weight)} | {
        id(p) for p in run.model.neck.parameters()}
    assert {id(p) for p in head_parameters(run.model)} == expected


class Pooled(Pictures):
    """Nine images: the last batch of two or four has one."""

    def __init__(self, kind: str, num: int = 9) -> None:
        super().__init__(kind, num, 28 if kind == 'det' else SIZE)


def normed(kind: str, norm: str) -> dict:
    """A model whose head normalises what is pooled to one value."""
    neck = fusion_neck(kind)
    model = model_cfg(kind, dict(trunk=vit(), new_module='n'), neck)
    if kind == 'cls':
        model.head = dict(
            type='mmpretrain.StackedLinearClsHead',
            num_classes=2,
            in_channels=DIMS,
            mid_channels=[8],
            norm_cfg=dict(type=norm.replace('BN', 'BN1d')))
    elif kind == 'seg':
        del model.decode_head.num_convs, model.decode_head.concat_input
        model.decode_head.update(
            type='mmseg.PSPHead', pool_scales=(1, 2), norm_cfg=dict(type=norm))
    else:
        model.bbox_head.update(norm_cfg=dict(type=norm), strides=[28])
        model.neck.update(scales=[0.5])
    return model


@pytest.mark.parametrize('num', [1, 9])
@pytest.mark.parametrize(('kind', 'norm'), [
    ('cls', 'BN'), ('seg', 'BN'), ('seg', 'SyncBN'), ('det', 'BN')])
def test_a_last_batch_of_one_image(kind: str, norm: str, num: int,
                                   tmp_path: Path) -> None:
    run = build_runner(
        kind, normed(kind, norm), tmp_path,
        custom_hooks=[dict(type='vim_mm.WarmHeadHook', epochs=2)])
    run._train_dataloader['dataset'] = Pooled(kind, num)
    run.train_loop  # builds it
    norms = [part for part in run.model.modules()
             if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    heads = snapshot(run.model)
    run.call_hook('before_train')
    assert norms and all(norm.training for norm in norms)
    assert not any(norm._forward_pre_hooks for norm in norms)
    assert not same(snapshot(run.model), heads)
    if num > 1:  # statistics are those of the other batches
        assert not any(map(torch.equal, before,
                           [norm.running_mean for norm in norms]))


@pytest.mark.parametrize(('sampler', 'drop_last', 'num', 'sizes'), [
    ('DefaultSampler', True, 9, [4, 4]),
    ('DefaultSampler', False, 9, [4, 4, 1]),
    ('InfiniteSampler', True, 9, [4, 4]),
    ('InfiniteSampler', False, 9, [4, 4, 1]),
    ('InfiniteSampler', True, 3, [3]),  # the training repeats them
])
def test_the_loader_says_whether_the_last_batch_counts(
        sampler: str, drop_last: bool, num: int, sizes: list,
        tmp_path: Path) -> None:
    run = runner('cls', tmp_path)
    run._train_dataloader.update(
        dataset=Pooled('cls', num), drop_last=drop_last,
        sampler=dict(type=sampler, shuffle=True))
    cached = cache_features(run.model, run.train_dataloader)
    assert [len(batch.data_samples) for batch in cached] == sizes


def test_what_fills_no_batch_is_refused(tmp_path: Path) -> None:
    run = runner('cls', tmp_path)
    run._train_dataloader.update(
        dataset=Pooled('cls', 3), drop_last=True,
        sampler=dict(type='DefaultSampler', shuffle=True))
    with pytest.raises(ValueError, match='do not fill one batch of 4'):
        WarmHeadHook(epochs=1).before_train(run)


@pytest.mark.parametrize('free', [3 * 10**4, 10**3])
def test_features_that_do_not_fit(free: int, tmp_path: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, 'free_memory', lambda: free)
    lines: list = []
    monkeypatch.setattr(places, 'print_log',
                        lambda text, **_: lines.append(text))
    run = runner('cls', tmp_path, batch_size=1)
    before = snapshot(run.model.head)
    hook = WarmHeadHook(epochs=2, views=3)
    if free == 10**3:
        with pytest.raises(ValueError, match='batches need .*`max_batches`'):
            hook.before_train(run)
        return
    hook.before_train(run)
    assert not same(snapshot(run.model.head), before)
    said, = lines
    assert 'views=1' in said and '`max_batches=2`' in said


@pytest.mark.parametrize('kind', KINDS)
def test_features_on_a_disk(kind: str, tmp_path: Path) -> None:
    learned = []
    for name, folder in (('a', None), ('b', str(tmp_path / 'cache'))):
        (tmp_path / name).mkdir()
        run = runner(kind, tmp_path / name)
        WarmHeadHook(epochs=3, folder=folder).before_train(run)
        learned.append(snapshot(run.model))
    assert learned[0].keys() == learned[1].keys()
    for key in learned[0]:
        torch.testing.assert_close(learned[0][key], learned[1][key])
    assert not any((tmp_path / 'cache').iterdir())


@pytest.mark.parametrize('number', [0, -1, 2.5, '3'])
def test_a_wrong_number_of_batches(number: object) -> None:
    with pytest.raises(ValueError, match='WarmHeadHook.max_batches'):
        WarmHeadHook(epochs=1, max_batches=number)

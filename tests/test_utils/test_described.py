# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What configs say of their data, for cards."""

import pytest

from vim_mm.utils.described import card_fields, image_size


def config(*stages: dict, wrap: bool = False) -> dict:
    dataset: dict = dict(type='CustomDataset', pipeline=list(stages))
    if wrap:
        dataset = dict(type='RepeatDataset', dataset=dataset)
    return dict(test_dataloader=dict(dataset=dataset))


LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')


@pytest.mark.parametrize('stages,size', [
    ([dict(type='Resize', scale=(64, 48))], [48, 64]),
    ([dict(type='Resize', scale=32)], [32, 32]),
    ([dict(type='ResizeEdge', scale=256),
      dict(type='CenterCrop', crop_size=224)], [224, 224]),
    ([dict(type='Resize', scale=(64, 48), keep_ratio=True),
      dict(type='Pad', size_divisor=32)], [48, 64]),
    ([], None),
    ([dict(type='Resize', scale_factor=.5)], None),
])
def test_sizes(stages: list, size: list) -> None:
    assert image_size(config(LOAD, *stages, PACK)) == size
    assert image_size(config(LOAD, *stages, PACK, wrap=True)) == size


@pytest.mark.parametrize('cfg', [{}, dict(test_dataloader=None),
                                 dict(train_dataloader=dict(dataset=3)),
                                 dict(val_dataloader=dict(cls={}, det={}))])
def test_configs_that_say_nothing(cfg: dict) -> None:
    assert image_size(cfg) is None and card_fields(cfg) == {}


def test_a_hook_and_a_card_of_the_config() -> None:
    hook = dict(
        type='vim_mm.ModuleToZooHook', zoo='z', dataset='d', task='cls',
        licence='MIT')
    cfg = dict(config(dict(type='Resize', scale=32)), custom_hooks=[hook])
    fields = dict(dataset='d', task='cls', licence='MIT', image_size=[32, 32])
    assert card_fields(cfg) == fields
    cfg['module_card'] = dict(licence='CC0', image_size=[8, 8])
    assert card_fields(cfg) == dict(fields, licence='CC0', image_size=[8, 8])

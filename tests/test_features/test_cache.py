# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Cached features replay the loss that the whole model would have."""

from itertools import islice

import pytest
import torch
from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.dataset import InfiniteSampler, pseudo_collate
from mmengine.model import BaseModel
from mmpretrain.models.utils.batch_augments import RandomBatchAugment
from torch.utils.data import ConcatDataset, DataLoader

from _tiny import (KINDS, Pictures, add_modules, build_model, fill,
                   fusion_neck, vit)
from vim_mm.datasets import SoftOnly
from vim_mm.features.cache import (cache_features, cached_loss, preprocess,
                                   replay, unmixed)
from vim_mm.features.loaders import finite


def loader(kind: str, **kwargs) -> DataLoader:
    kwargs = dict(dict(batch_size=3, collate_fn=pseudo_collate), **kwargs)
    return DataLoader(Pictures(kind), **kwargs)


def build(kind: str, *modules: str) -> BaseModel:
    torch.manual_seed(0)
    model = build_model(kind, dict(trunk=vit()), fusion_neck(kind, modules))
    fill(model.backbone.trunk, 0.1)
    add_modules(model.backbone, *modules)
    return model


@pytest.mark.parametrize('modules', [(), ('a', 'b')])
@pytest.mark.parametrize('kind', KINDS)
def test_the_cached_loss_is_the_models(kind: str, modules: tuple) -> None:
    model = build(kind, *modules)
    cached = cache_features(model, loader(kind))
    assert [len(b.data_samples) for b in cached] == [3, 3, 2]
    model.train()
    for data, batch in zip(loader(kind), cached):
        data = preprocess(model, data)
        assert batch.input_shape == data['inputs'].shape
        loss, _ = model.parse_losses(
            model.loss(data['inputs'], data['data_samples']))
        replayed = cached_loss(model, batch)
        torch.testing.assert_close(replayed, loss)
        # and again: samples are not used up
        torch.testing.assert_close(cached_loss(model, batch), loss)
    replayed.backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize('kind', ['det', 'seg'])
def test_images_without_a_label(kind: str) -> None:
    class Blank(Pictures):
        """Nothing to learn from."""

        def __getitem__(self, index: int) -> dict:
            sample = super().__getitem__(index)
            data = sample['data_samples']
            if kind == 'seg':
                data.gt_sem_seg.data.fill_(255)
            else:
                data.gt_instances = data.gt_instances[:0]
            return sample

    with pytest.raises(ValueError, match='Nothing in the training set is lab'):
        cache_features(build(kind), DataLoader(
            Blank(kind), batch_size=3, collate_fn=pseudo_collate))


def test_views_batches_and_modes() -> None:
    model = build('cls')
    model.train()
    cached = cache_features(model, loader('cls'), views=2, max_batches=2)
    assert len(cached) == 4 and model.training
    assert not any(f.requires_grad for b in cached for f in b.features)
    model.eval()
    cache_features(model, loader('cls'), max_batches=1)
    assert not model.training


def test_an_infinite_sampler_gives_one_data_set() -> None:
    data = Pictures('cls')
    endless = loader('cls', sampler=InfiniteSampler(data, shuffle=True))
    training = iter(endless)
    next(training)
    cached = cache_features(build('cls'), endless, views=2)
    assert [len(b.data_samples) for b in cached] == [3, 3, 2] * 2
    seen = [s.img_id for b in cached[:3] for s in b.data_samples]
    assert sorted(seen) == list(range(8))
    # training goes on with the sampler
    assert len([next(training) for _ in range(5)]) == 5
    assert len(next(iter(endless))['inputs']) == 3


def test_replay_gives_the_backbone_back() -> None:
    model = build('cls')
    x = torch.randn(1, 3, 56, 56)
    with pytest.raises(KeyError):
        with replay(model, (torch.zeros(1), )):
            assert torch.equal(model.backbone(x)[0], torch.zeros(1))
            raise KeyError
    assert model.backbone(x)[0].shape == (1, 32, 4, 4)


def test_pictures_are_unmixed_only_within_the_context() -> None:
    model = build('cls')
    data, = islice(loader('cls'), 1)
    with unmixed(model):  # nothing to do
        plain = preprocess(model, data)['inputs']
    mixes = RandomBatchAugment([dict(type='Mixup', alpha=1.)])
    model.data_preprocessor.batch_augments = mixes
    model.data_preprocessor.num_classes = 2
    model.data_preprocessor.to_onehot = True
    with pytest.raises(KeyError), unmixed(model):
        assert torch.equal(preprocess(model, data)['inputs'], plain)
        raise KeyError
    assert model.data_preprocessor.batch_augments is mixes
    assert not torch.equal(preprocess(model, data)['inputs'], plain)


def test_an_endless_sampler_of_several_sources_gives_all_once() -> None:
    data = ConcatDataset([Pictures('cls'), Pictures('cls', 4)])
    sampler = MultiSourceSampler(data, 4, [3, 1])
    endless = DataLoader(
        data, batch_size=4, sampler=sampler, collate_fn=pseudo_collate)
    assert sum(len(b['inputs']) for b in finite(endless)) == 12


@pytest.mark.parametrize('num', [1, 2])
def test_images_without_labels_of_their_own_are_left_out(num: int) -> None:
    soft = SoftOnly(Pictures('cls', 4))
    data = ConcatDataset([Pictures('cls') for _ in range(num)] + [soft])
    mixed = DataLoader(data, batch_size=4, collate_fn=pseudo_collate)
    samples = [s for b in finite(mixed) for s in b['data_samples']]
    assert len(samples) == 8 * num
    assert not any(s.get('soft_only') for s in samples)


def test_a_training_set_without_labels_is_refused() -> None:
    soft = SoftOnly(Pictures('cls', 4))
    with pytest.raises(ValueError, match='No image of the training set'):
        finite(DataLoader(soft, batch_size=4))

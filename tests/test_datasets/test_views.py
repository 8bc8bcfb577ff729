# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A view is the same image wherever and whenever it is drawn."""

import random
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from torch.utils.data import DataLoader, Subset

from _tiny import Pictures
from vim_mm.datasets import Views, views_of
from vim_mm.registry import DATASETS
from vim_mm.utils.seeds import seeded

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpretrain.RandomResizedCrop', scale=16),
    dict(type='mmpretrain.RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.ColorJitter', brightness=0.4),  # torch draws
    dict(type='mmpretrain.PackInputs'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('images')
    draw = np.random.default_rng(0)
    for label in 'ab':
        for index in range(3):
            mmcv.imwrite(
                draw.integers(0, 255, (32, 40, 3)).astype(np.uint8),
                str(root / label / f'{index}.png'))
    return root


def build(folder: Path, views: int = 3, **kwargs) -> Views:
    dataset = dict(
        type='mmpretrain.CustomDataset',
        data_root=str(folder),
        pipeline=PIPELINE,
        **kwargs)
    return DATASETS.build(
        dict(type='vim_mm.Views', dataset=dataset, views=views))


def images(dataset) -> list:
    return [item['inputs'] for item in dataset]


def collate(items: list) -> list:
    return items


def test_the_same_view_in_another_order_process_and_epoch(folder) -> None:
    dataset = build(folder)
    assert len(dataset) == 18
    first = [dataset[index] for index in range(18)]
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    for index in reversed(range(18)):
        assert torch.equal(dataset[index]['inputs'], first[index]['inputs'])
    for workers in (1, 2):
        loader = DataLoader(
            dataset, batch_size=4, num_workers=workers, collate_fn=collate)
        drawn = [item for batch in loader for item in batch]
        assert all(
            torch.equal(a['inputs'], b['inputs'])
            for a, b in zip(first, drawn))
        assert views_of([i['data_samples'] for i in drawn]) == views_of(
            [i['data_samples'] for i in first])


def test_views_differ_and_flips_belong_to_them(folder) -> None:
    dataset = build(folder, views=12)
    views = [dataset[6 * view] for view in range(12)]
    assert len({item['data_samples'].pixels for item in views}) == 12
    flips = [item['data_samples'].flip for item in views]
    assert any(flips) and not all(flips)
    assert [item['data_samples'].view_id for item in views] == list(range(12))
    assert {item['data_samples'].sample_id for item in views} == {'a/0.png'}
    other = Views(dataset.dataset, views=12, seed=1)
    assert all(
        not torch.equal(a['inputs'], b['inputs'])
        for a, b in zip(views, (other[6 * view] for view in range(12))))


def test_a_subset_has_the_same_views(folder) -> None:
    whole, part = build(folder), build(folder, indices=[1, 4])
    for view in range(3):
        assert torch.equal(part[2 * view + 1]['inputs'],
                           whole[6 * view + 4]['inputs'])


@pytest.mark.parametrize('draw', [
    random.random, lambda: float(np.random.rand()),
    lambda: float(torch.rand(()))
])
def test_the_numbers_of_others_stay(folder, draw) -> None:
    dataset = build(folder)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw() for _ in range(3)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    got = []
    for index in range(3):
        got.append(draw())
        dataset[index]
    assert got == expected
    with pytest.raises(KeyError), seeded(3):
        raise KeyError
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(3):
        drawn = draw()
    assert draw() == expected[0] != drawn


@pytest.mark.parametrize('kind', ['cls', 'det', 'seg'])
def test_data_sets_without_paths_and_of_any_kind(kind) -> None:
    dataset = Views(Pictures(kind), views=2)
    sample = dataset[9]['data_samples']
    assert views_of([sample])[0][:2] == ('#1', 1)
    assert dataset.metainfo == Pictures.METAINFO
    with pytest.raises(IndexError, match='16 views'):
        dataset[16]


def test_recipe_names_pipelines_inside(folder) -> None:
    plain, recipe = build(folder), build(folder).recipe()
    assert 'RandomResizedCrop' in recipe['pipeline']
    assert {'cv2', 'Pillow', 'torchvision'} < recipe.keys()
    repeated = DATASETS.build(
        dict(
            type='vim_mm.Views',
            dataset=dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='mmpretrain.CustomDataset',
                    data_root=str(folder),
                    pipeline=PIPELINE))))
    assert repeated.recipe() == recipe
    # built already: the names of its stages
    assert 'ColorJitter' in Views(plain.dataset).recipe()['pipeline']


def test_refuses(folder) -> None:
    with pytest.raises(ValueError, match='`views` is 0'):
        build(folder, views=0)
    with pytest.raises(ValueError, match='`seed` is -1'):
        Views(Pictures('cls'), seed=-1)
    with pytest.raises(ValueError, match='vim_mm.Views'):
        views_of([Pictures('cls')[0]['data_samples']])
    dataset = build(folder)
    dataset.dataset.pipeline = Compose(PIPELINE[:1])
    with pytest.raises(ValueError, match='PackInputs'):
        dataset[0]
    with pytest.raises(ValueError, match='PackInputs'):
        Views(Subset([1, 2], [0]))[0]

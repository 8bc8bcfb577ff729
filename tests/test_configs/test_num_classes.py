# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Numbers of classes, against lists of names that others keep."""

from pathlib import Path
from typing import Iterator, List

import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, init_default_scope
from mmpretrain.datasets import categories
from timm.data import ImageNetInfo

ROOT = Path(__file__).resolve().parents[2] / 'configs/vim'
#: Folders of one class each: no data set class of the stack names these.
UNNAMED = ['imagenet21k', 'inat2021', 'places365']
VTAB = dict(
    caltech101='CALTECH101_CATEGORIES',
    cifar='CIFAR100_CATEGORIES',
    dtd='DTD_CATEGORIES',
    oxford_iiit_pet='OxfordIIITPet_CATEGORIES',
    sun397='SUN397_CATEGORIES')


def heads(model: ConfigDict) -> Iterator[ConfigDict]:
    for value in model.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, dict):
                if 'num_classes' in part:
                    yield part
                yield from heads(part)


def names(cfg: Config) -> List[str]:
    """The classes of the innermost data set, as its class knows them."""
    init_default_scope(cfg.default_scope)
    dataset = cfg.train_dataloader.dataset
    scope = dataset.get('_scope_')
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset.datasets[0]
        scope = dataset.get('_scope_', scope)
    kind = dataset.type
    if scope is not None and '.' not in kind:
        kind = f'{scope}.{kind}'
    return DATASETS.get(kind).METAINFO.get('classes', [])


@pytest.mark.parametrize(
    'name', sorted(path.stem for path in ROOT.glob('*stream_*.py')))
def test_heads_have_the_classes_of_their_data_set(name: str) -> None:
    cfg = Config.fromfile(ROOT / f'{name}.py')
    counts = {head.num_classes for head in heads(cfg.model)}
    assert len(counts) == 1
    known = names(cfg)
    if name.split('_')[1] in [*UNNAMED, 'vtab']:
        assert not known
    else:
        assert counts == {len(known)}


def test_imagenet21k_p_in_both_releases() -> None:
    path = ROOT / 'midstream_imagenet21k.py'
    winter = int(path.read_text().split('model.head.num_classes=')[1][:5])
    counts = {Config.fromfile(path).model.head.num_classes, winter}
    known = ImageNetInfo('imagenet-21k-miil').num_classes()
    assert known in counts and counts == {11221, 10450}


@pytest.mark.parametrize('task', VTAB)
def test_vtab(task: str) -> None:
    cfg = Config.fromfile(ROOT / 'downstream_vtab.py')
    known = getattr(categories, VTAB[task])
    assert cfg.class_counts[task] == len(known)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Few images of a data set, class by class."""

import copy
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import List, Set

import cv2
import numpy as np
import pytest
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.fileio import dump
from mmengine.runner import Runner

from _tiny import first_of
from vim_mm.datasets import FewShot, few_shot
from vim_mm.datasets.few_shot import draw_per_class, draw_share, labels_of
from vim_mm.registry import DATASETS

CLASSES = ('a', 'b', 'c')
#: Each image has its class; the third is rare.
SINGLE = [{0}] * 40 + [{1}] * 20 + [{2}] * 4
#: As scenes are: one class is everywhere, and one image is empty.
SEVERAL = [{0}] * 30 + [{0, 1}] * 15 + [{0, 1, 2}] * 3 + [{2}] * 2 + [set()]


def write(kind: str, folder: Path, labels: List[Set[int]],
          **kwargs) -> dict:
    """Files of a data set of one kind; its config."""
    return globals()[f'_{kind}'](folder, labels, **kwargs)


def _cls(folder: Path, labels: List[Set[int]], **kwargs) -> dict:
    lines = [f'{i}.png {min(each)}' for i, each in enumerate(labels)]
    (folder / 'list.txt').write_text('\n'.join(lines))
    return dict(
        type='mmpretrain.CustomDataset',
        data_root=str(folder),
        ann_file='list.txt',
        metainfo=dict(classes=CLASSES),
        **kwargs)


def _det(folder: Path, labels: List[Set[int]], **kwargs) -> dict:
    images = [
        dict(id=i, file_name=f'{i}.png', width=40, height=40)
        for i in range(len(labels))
    ]
    boxes = [(i, each, 0) for i, all_ in enumerate(labels) for each in all_]
    boxes += [(i, 2, 1) for i in range(10)]  # crowds are not learned from
    dump(
        dict(
            images=images,
            annotations=[
                dict(
                    id=n,
                    image_id=i,
                    category_id=each,
                    bbox=[1, 1, 20, 20],
                    area=400,
                    iscrowd=crowd) for n, (i, each, crowd) in enumerate(boxes)
            ],
            categories=[
                dict(id=i, name=name) for i, name in enumerate(CLASSES)
            ]), folder / 'coco.json')
    return dict(
        type='mmdet.CocoDataset',
        data_root=str(folder),
        ann_file='coco.json',
        data_prefix=dict(img=''),
        metainfo=dict(classes=CLASSES),
        **kwargs)


def _seg(folder: Path, labels: List[Set[int]], **kwargs) -> dict:
    for name in ('img', 'ann'):
        (folder / name).mkdir()
    for index, each in enumerate(labels):
        name = f'{index:03}.png'
        cv2.imwrite(str(folder / 'img' / name), np.zeros((4, 4), np.uint8))
        label_map = np.full((4, 4), 255, np.uint8)
        for row, label in enumerate(each):
            label_map[row] = label
        cv2.imwrite(str(folder / 'ann' / name), label_map)
    return dict(
        type='mmseg.BaseSegDataset',
        data_root=str(folder),
        img_suffix='.png',
        data_prefix=dict(img_path='img', seg_map_path='ann'),
        metainfo=dict(
            classes=CLASSES, palette=[[0] * 3, [1] * 3, [2] * 3]),
        pipeline=[dict(type='mmseg.LoadAnnotations')],
        **kwargs)


def counts(labels: List[Set[int]]) -> Counter:
    return Counter(each for classes in labels for each in classes)


# ---------------------------------------------------------------------- draw


@pytest.mark.parametrize('seed', [0, 1, 7])
@pytest.mark.parametrize('number', [1, 2, 4])
def test_each_class_gives_as_many_images(number, seed):
    chosen = draw_per_class(SINGLE, number, seed)
    assert len(set(chosen)) == len(chosen)
    assert counts([SINGLE[i] for i in chosen]) == dict.fromkeys(
        range(3), number)


@pytest.mark.parametrize('labels', [SINGLE, SEVERAL])
@pytest.mark.parametrize('draw, sizes', [
    (draw_per_class, [1, 2, 5, 10, 20]),
    (draw_share, [0.01, 0.1, 0.2, 0.5, 0.9, 1.]),
])
def test_small_draws_are_part_of_larger_ones(draw, sizes, labels):
    drawn = [draw(labels, size, 3) for size in sizes]
    for few, more in zip(drawn, drawn[1:]):
        assert more[:len(few)] == few and len(more) > len(few) > 0
    assert drawn == [draw(labels, size, 3) for size in sizes]
    assert drawn[1] != draw(labels, sizes[1], 4)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('number', [1, 3, 5])
def test_images_of_several_classes_serve_them_all(number, seed):
    """No class lacks an image, and none is drawn that serves no class."""
    chosen = draw_per_class(SEVERAL, number, seed)
    found = counts([SEVERAL[i] for i in chosen])
    assert min(found[c] for c in range(3)) == number
    assert len(chosen) <= 3 * number
    assert set() not in [SEVERAL[i] for i in chosen]


def test_a_class_with_fewer_images_gives_them_all():
    chosen = draw_per_class(SINGLE, 10, 0)
    assert counts([SINGLE[i] for i in chosen]) == {0: 10, 1: 10, 2: 4}


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('share', [0.25, 0.5, 0.75])
def test_classes_keep_their_proportions(share, seed):
    for labels in (SINGLE, random.Random(seed).sample(SINGLE, len(SINGLE))):
        chosen = draw_share(labels, share, seed)
        assert counts([labels[i] for i in chosen]) == {
            c: share * n for c, n in {0: 40, 1: 20, 2: 4}.items()
        }
    chosen = draw_share(SEVERAL, share, seed)
    assert len(chosen) == round(share * len(SEVERAL))
    rare = sum(2 in SEVERAL[i] for i in chosen)
    assert abs(rare - 5 * share) <= 1


# ------------------------------------------------------------------ data set


@pytest.mark.parametrize('kind, labels', [
    ('cls', SINGLE),
    ('det', SEVERAL),
    ('seg', SEVERAL),
])
@pytest.mark.parametrize('size', [dict(per_class=2), dict(share=0.3)])
@pytest.mark.parametrize('lazy', first_of([True, False]))
def test_it_behaves_as_the_data_set(kind, labels, size, lazy, tmp_path):
    cfg = write(kind, tmp_path, labels)
    whole = DATASETS.build(copy.deepcopy(cfg))
    assert labels_of(whole) == labels
    few = DATASETS.build(
        dict(
            type='vim_mm.FewShot',
            dataset=dict(cfg, lazy_init=lazy),
            seed=3,
            lazy_init=lazy,
            **size))
    assert isinstance(few, FewShot) and few._drawn is not lazy
    assert few.metainfo == whole.metainfo and few._drawn is not lazy
    draw = draw_per_class if 'per_class' in size else draw_share
    chosen = sorted(draw(labels, *size.values(), 3))
    assert len(few) == len(chosen) < len(whole)
    assert few._drawn
    for place, index in enumerate(chosen):
        own, its = few.get_data_info(place), whole.get_data_info(index)
        assert own.pop('sample_idx') == place
        assert its.pop('sample_idx') == index
        assert own == its
    assert few.get_subset([1, 0]).get_data_info(0) == dict(
        few.get_data_info(1), sample_idx=0)
    again = pickle.loads(pickle.dumps(few))
    assert again.get_data_info(0) == few.get_data_info(0)
    assert len(copy.deepcopy(few)) == len(few)


def test_images_that_fail_are_replaced_by_others_of_the_few(tmp_path):
    few = FewShot(
        dict(write('cls', tmp_path, SINGLE), max_refetch=100), per_class=1)
    allowed = {few.get_data_info(i)['img_path'] for i in range(3)}
    given = []

    def fail_first(info: dict):
        given.append(info['img_path'])
        return info if len(given) % 5 == 0 else None

    few.pipeline.transforms = [fail_first]
    for _ in range(20):
        few[0]
    assert set(given) == allowed


@pytest.mark.parametrize('lazy', [False, True])
def test_a_loader_reads_the_few(lazy, tmp_path):
    """The runner's loader too, with processes, and inside a repetition."""
    few = dict(
        type='vim_mm.FewShot',
        dataset=write('cls', tmp_path, SINGLE),
        per_class=2,
        lazy_init=lazy)
    loader = Runner.build_dataloader(
        dict(
            dataset=dict(type='RepeatDataset', times=3, dataset=few),
            batch_size=6,
            num_workers=2 * lazy,
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate')))
    labels = [label for batch in loader for label in batch['gt_label']]
    assert Counter(labels) == dict.fromkeys(range(3), 6)


def test_several_data_sets_are_drawn_from_as_one(tmp_path):
    parts = []
    for name, labels in dict(x=SINGLE[:30], y=SINGLE[30:], z=[{0}]).items():
        (tmp_path / name).mkdir()
        parts.append(write('cls', tmp_path / name, labels))
    whole = DATASETS.build(dict(type='ConcatDataset', datasets=parts))
    few = FewShot(whole, per_class=4)
    assert isinstance(few.dataset, ConcatDataset) and len(whole) == 65
    chosen = sorted(draw_per_class(labels_of(whole), 4, 0))
    assert [few.get_data_info(i)['img_path'] for i in range(len(few))
            ] == [whole.get_data_info(i)['img_path'] for i in chosen]
    assert few[0]['img_path'] and len(few) == 12


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize('size, message', [
    (dict(per_class=10), 'fewer than 10 image(s) of 1 class(es): c (4).'),
    (dict(share=0.06), 'fewer than 1 image(s) of 1 class(es): c (0).'),
])
def test_few_images_of_a_class_are_told(size, message, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(few_shot, 'print_log', lambda text, *_: told.append(
        text))
    FewShot(write('cls', tmp_path, SINGLE), **size)
    assert told == [f'FewShot has {message}']
    FewShot(write('cls', tmp_path, SINGLE), per_class=4)
    assert len(told) == 1


@pytest.mark.parametrize('size', [
    {}, dict(per_class=3, share=0.1), dict(per_class=0), dict(per_class=-1),
    dict(per_class=2.5), dict(share=0), dict(share=1.5), dict(share=-0.1)
])
def test_numbers_that_make_no_sense_are_refused(size):
    with pytest.raises(ValueError, match='FewShot'):
        FewShot(dict(type='nothing is built'), **size)


@pytest.mark.parametrize('build, error, message', [
    (lambda cls, seg: dict(type='RepeatDataset', times=2, dataset=cls),
     ValueError, 'of a RepeatDataset'),
    (lambda cls, seg: dict(cls, with_label=False, ann_file=''), ValueError,
     'neither `gt_label`'),
    (lambda cls, seg: dict(seg, pipeline=[]), ValueError, 'LoadAnnotations'),
])
def test_data_sets_without_classes_are_refused(build, error, message,
                                               tmp_path):
    (tmp_path / '0.png').touch()
    cls = write('cls', tmp_path, SINGLE)
    seg = write('seg', tmp_path, SEVERAL)
    with pytest.raises(error, match=message):
        FewShot(build(cls, seg), per_class=2)


def test_images_without_any_label_are_refused(tmp_path):
    cfg = write('det', tmp_path, [set()] * 12)
    with pytest.raises(ValueError, match='no image has a label'):
        FewShot(cfg, per_class=2)


def test_the_whole_data_set_stays_as_it_is(tmp_path):
    whole: BaseDataset = DATASETS.build(write('cls', tmp_path, SINGLE))
    FewShot(whole, per_class=2)
    assert len(whole) == len(SINGLE)

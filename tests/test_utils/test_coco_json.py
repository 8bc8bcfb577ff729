# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A COCO json that contradicts itself is refused where a run reads it, and
what mmdet leaves out is counted."""

import json
import re
from pathlib import Path
from typing import Any, Callable, List, Optional

import pytest
from mmengine.runner import Runner

import _loading
from _loading import build_loader as build
from _loading import coco, write_image, write_json
from vim_mm.utils import coco_boxes, coco_json
from vim_mm.utils.cli import is_user_error

SIZE, NUM = 40, 6


def good() -> dict:
    """Six images with two boxes each, of two classes."""
    return coco(NUM, SIZE, [[5, 5, 20, 10], [20, 12, 15, 25]],
                {3: 'a', 4: 'b'})


def change(part: str, index: int, **values: Any) -> Callable:
    return lambda data: data[part][index].update(values)


def change_all(part: str, make: Callable) -> Callable:
    def apply(data: dict) -> None:
        for each in data[part]:
            each.update(make(each))
    return apply


def add(part: str, index: int, **values: Any) -> Callable:
    return lambda data: data[part].append(dict(data[part][index], **values))


def corners(each: dict) -> dict:
    x, y, width, height = each['bbox']
    return dict(bbox=[x, y, x + width, y + height])


def as_texts(data: dict) -> None:
    for each in data['annotations']:
        each.update(image_id=f'x{each["image_id"]}', id=f'x{each["id"]}',
                    category_id=f'x{each["category_id"]}')
    for each in (*data['images'], *data['categories']):
        each['id'] = f'x{each["id"]}'


def unlisted(data: dict) -> None:
    del data['images'][2]


REFUSED = dict(
    image_unlisted=(unlisted, '2 of 12 annotations .* a image_id such as 2, '
                    'which its images do not list'),
    image_as_text=(change('annotations', 0, image_id='0'), "such as '0'"),
    image_none=(change('annotations', 0, image_id=None), 'such as None'),
    category_unlisted=(change('annotations', 3, category_id=9),
                       '1 of 12 annotations .* a category_id such as 9, .* '
                       r'do not list \(such as 3\)'),
    category_as_text=(change('annotations', 3, category_id='3'),
                      "category_id such as '3'"),
    category_gone=(lambda data: data['categories'].pop(), 'category_id .* 4'),
    two_images=(add('images', 0, file_name='5.png'),
                "gives two of its images the id 0, '0.png' and '5.png'"),
    two_sizes=(add('images', 0, width=20), 'two of its images the id 0'),
    two_categories=(add('categories', 0, name='b2'),
                    "gives two of its categories the id 3, 'a' and 'b2'"),
    two_annotations=(add('annotations', 0, image_id=1), 'not unique|two'),
    all_crowds=(change_all('annotations', lambda each: dict(iscrowd=1)),
                'All 12 annotations .* are crowds'),
    corners=(change_all('annotations', corners),
             r'are the corners x1, y1, x2, y2, such as \[20, 12, 35, 37\]: '
             '.* 6 of 12 reach out'),
    corners_of_small_ones=(
        change_all('annotations', lambda each: dict(bbox=[
            3 * each['id'], 9, 3 * each['id'] + 3, 12])),
        'are the corners'),
    corners_nearly_all=(
        lambda data: (data['annotations'].extend(
            dict(data['annotations'][i % 12], id=100 + i)
            for i in range(300)), change_all('annotations', corners)(data),
            data['annotations'][7].update(bbox=[9, 9, 3, 3])),
        'are the corners'),
    results=(lambda data: data.update(x=1) or data['annotations'],
             'cannot be read'),
)
SAID = dict(
    outside=(change('annotations', 1, bbox=[50, 5, 9, 9]),
             r'1 of 12 boxes .* such as \[50, 5, 9, 9\], are outside'),
    of_no_area=(change('annotations', 1, area=0), '1 of 12 boxes'),
    thin=(change('annotations', 1, bbox=[5, 5, .5, 9]), '1 of 12 boxes'),
    before=(change('annotations', 1, bbox=[-9, 5, 9, 9]), '1 of 12 boxes'),
    twice=(add('images', 0, id=99), "lists 1 images more than once, such as "
           "'0.png'"),
    # of large objects nobody knows
    perhaps_corners=(change_all('annotations', lambda each: dict(
        bbox=[6, 8, 37, 36])), r'may be the corners .* \[6, 8, 37, 36\]'),
)
SILENT = dict(
    as_it_is=lambda data: None,
    as_texts=as_texts,
    the_same_image_twice=add('images', 0),
    a_crowd=change('annotations', 1, iscrowd=1),
    over_the_edge=change('annotations', 1, bbox=[-3, 30, 50, 20]),
    some_over_the_edge=change_all(
        'annotations', lambda each: dict(bbox=[9, 9, 34, 34])
        if each['id'] < 3 else {}),
    padded=change_all(
        'annotations', lambda each: dict(
            bbox=[-4, -4, 30, 30] if each['id'] % 2 else [9, 9, 34, 34])),
    cut_off=change_all(
        'annotations', lambda each: dict(bbox=[12, 12, 45, 60])),
    whole_images=change_all(
        'annotations', lambda each: dict(bbox=[0, 0, SIZE, SIZE])),
    no_annotation_of_one=lambda data: data['annotations'].__delitem__(
        slice(2)),
    another_class=lambda data: data['categories'].append(
        dict(id=9, name='c')),
)
WRAPPERS = dict(
    plain=lambda one: one,
    concat=lambda one: dict(type='ConcatDataset', datasets=[one]),
    concat_lazy=lambda one: dict(
        type='ConcatDataset', datasets=[dict(one, lazy_init=True)],
        lazy_init=True),
    repeat=lambda one: dict(type='RepeatDataset', times=2, dataset=one),
    balanced=lambda one: dict(
        type='ClassBalancedDataset', oversample_thr=.1, dataset=one),
    few=lambda one: dict(type='vim_mm.FewShot', share=.9, dataset=one),
    mix=lambda one: dict(
        type='mmdet.MultiImageMixDataset', pipeline=[], dataset=one),
    lazy=lambda one: dict(one, lazy_init=True))


def config(folder: Path, spoil: Callable, classes: tuple = ('a', 'b'),
           **more: Any) -> dict:
    data = good()
    changed = spoil(data)
    for index in range(NUM):
        write_image(folder / f'{index}.png', SIZE, value=index * 20)
    write_json(folder / 'ann.json',
               changed if isinstance(changed, list) else data)
    return dict(
        type='mmdet.CocoDataset', data_root=str(folder), ann_file='ann.json',
        data_prefix=dict(img=''), metainfo=dict(classes=classes),
        pipeline=[dict(type='mmdet.LoadImageFromFile')], **more)


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """What a run is told in its log."""
    return _loading.lines(monkeypatch, coco_boxes, coco_json)


@pytest.mark.parametrize('what', REFUSED)
def test_what_contradicts_itself(what: str, tmp_path: Path) -> None:
    spoil, words = REFUSED[what]
    with pytest.raises(ValueError, match=words) as caught:
        build(config(tmp_path, spoil))
    assert is_user_error(caught.value) and '\n' not in str(caught.value)
    assert 'ann.json' in str(caught.value)


@pytest.mark.parametrize('wrap', WRAPPERS)
@pytest.mark.parametrize('test_mode', [False, True])
def test_inside_of_wrappers(wrap: str, test_mode: bool,
                            tmp_path: Path) -> None:
    dataset = config(tmp_path, REFUSED['category_unlisted'][0],
                     test_mode=test_mode)
    with pytest.raises(ValueError, match='category_id such as 9'):
        build(WRAPPERS[wrap](dataset))
    assert len(build(WRAPPERS[wrap](config(
        tmp_path, SILENT['as_it_is'], test_mode=test_mode))))


@pytest.mark.parametrize('what', SAID)
def test_what_is_left_out_is_counted(what: str, tmp_path: Path,
                                     lines: list) -> None:
    spoil, words = SAID[what]
    assert len(build(config(tmp_path, spoil)))
    said, = lines
    assert re.search(words, said), said


@pytest.mark.parametrize('what', SILENT)
def test_ordinary_files(what: str, tmp_path: Path, lines: list) -> None:
    assert len(build(config(tmp_path, SILENT[what]))) == NUM
    assert not lines


@pytest.mark.parametrize('classes', [('a', ), ('b', ), ('a', 'b')])
def test_some_of_the_classes(classes: tuple, tmp_path: Path,
                             lines: list) -> None:
    loader = build(config(tmp_path, SILENT['another_class'], classes))
    found = {box['bbox_label'] for i in range(NUM)
             for box in loader.dataset.get_data_info(i)['instances']}
    assert len(found) == len(classes) and not lines


@pytest.mark.parametrize('kind', ['boxes', 'captions', 'none'])
def test_other_files_of_the_format(kind: str, tmp_path: Path) -> None:
    """Captions have no boxes, and files to test on no annotations."""
    from pycocotools.coco import COCO
    data: Optional[dict] = good()
    if kind == 'captions':
        del data['categories']
        data['annotations'] = [dict(id=0, image_id=0, caption='x')]
    elif kind == 'none':
        del data['annotations']
    path = tmp_path / 'ann.json'
    path.write_text(json.dumps(data))
    before = COCO.__init__
    with coco_json.checked_coco():
        assert COCO.__init__ is not before
        assert len(COCO(str(path)).imgs) == NUM
        COCO()
    assert COCO.__init__ is before


def metric(folder: Path, ann_file: str = 'ann.json') -> None:
    Runner.build_evaluator(None, dict(
        type='mmdet.CocoMetric', ann_file=str(folder / ann_file)))


@pytest.mark.parametrize(('first', 'crowd', 'said'), [
    (0, 0, r'ann.json numbers its annotations from 0, .* of the 6 boxes of '
     'the category 3 one counts as missed'),
    (0, 1, None), (1, 0, None)])
def test_a_number_that_metrics_take_for_none(
        first: int, crowd: int, said: Optional[str], tmp_path: Path,
        lines: list) -> None:
    data = good()
    for index, each in enumerate(data['annotations'], first):
        each.update(id=index, iscrowd=crowd * (index == first))
    write_json(tmp_path / 'ann.json', data)
    metric(tmp_path)
    assert len(lines) == (said is not None)
    assert said is None or re.search(said, lines[0]), lines

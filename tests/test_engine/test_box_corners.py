# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Broken boxes of other formats than COCO's, which mmdet learns from."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Optional

import numpy as np
import pytest
from pycocotools import mask

import _loading
from _loading import LOAD, build_loader, coco, write_image, write_json
from _tiny import first_of
from vim_mm.engine import boxes, outlines
from vim_mm.utils.cli import is_user_error

SIZE, NUM = 40, 4
GOOD = [5, 5, 25, 30]


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    return _loading.lines(monkeypatch, boxes, outlines)


def xml(folder: Path, found: List[list], difficult: int = 0) -> dict:
    """One box an image, as x1, y1, x2, y2."""
    (folder / 'Annotations').mkdir()
    for index, box in enumerate(found):
        write_image(folder / f'JPEGImages/{index}.jpg', SIZE)
        corners = ''.join(f'<{key}>{value}</{key}>' for key, value in zip(
            ('xmin', 'ymin', 'xmax', 'ymax'), box))
        (folder / f'Annotations/{index}.xml').write_text(
            f'<annotation><size><width>{SIZE}</width><height>{SIZE}</height>'
            f'</size><object><name>x</name><difficult>{difficult}</difficult>'
            f'<bndbox>{corners}</bndbox></object></annotation>')
    (folder / 'list.txt').write_text('\n'.join(map(str, range(len(found)))))
    return dict(type='mmdet.XMLDataset', ann_file='list.txt',
                data_prefix=dict(sub_data_root=''))


def odgt(folder: Path, found: List[list], ignore: int = 0) -> dict:
    """The same, as x, y, width and height."""
    rows = []
    for index, (x1, y1, x2, y2) in enumerate(found):
        write_image(folder / f'img/{index}.jpg', SIZE)
        box = [x1, y1, x2 - x1, y2 - y1]
        rows.append(json.dumps(dict(ID=str(index), gtboxes=[dict(
            tag='x', fbox=box, hbox=box, vbox=box,
            extra=dict(ignore=ignore))])))
    (folder / 'train.odgt').write_text('\n'.join(rows))
    return dict(type='mmdet.CrowdHumanDataset', ann_file='train.odgt',
                data_prefix=dict(img='img/'))


FORMATS = dict(xml=xml, odgt=odgt)


def build(folder: Path, given: dict, *stages: dict) -> Any:
    return build_loader(dict(
        given, data_root=str(folder), metainfo=dict(classes=('x', )),
        pipeline=[dict(LOAD, type='mmdet.LoadImageFromFile'), *stages]))


CASES = [
    ([GOOD] * NUM, None, None),
    ([[0, 0, 60, 60]] * NUM, None, None),  # over the edge
    ([GOOD] * 3 + [[25, 5, 5, 30]], None, '1 of 4 boxes'),
    ([GOOD] * 3 + [[5, 9, 25, 9]], None, '1 of 4 boxes'),
    ([GOOD] * 2 + [[25, 20, 10, 15]] * 2, '2 of 4 boxes .* end before', None),
    ([[25, 20, 10, 15]] * NUM, r'4 of 4 .*\(x1, y1, x2, y2\); give', None),
]


@pytest.mark.parametrize('form', first_of(list(FORMATS)))
@pytest.mark.parametrize(('found', 'words', 'said'), CASES)
def test_corners(form: str, found: list, words: Optional[str],
                 said: Optional[str], tmp_path: Path, lines: list) -> None:
    given = FORMATS[form](tmp_path, found)
    if words is None:
        assert len(build(tmp_path, given)) == NUM
        assert bool(lines) == bool(said)
        assert said is None or re.search(said, lines[0])
        return
    with pytest.raises(ValueError, match=words) as caught:
        build(tmp_path, given)
    assert is_user_error(caught.value) and given['ann_file'] in str(
        caught.value)


def test_a_box_that_is_not_finite(tmp_path: Path) -> None:
    given = odgt(tmp_path, [GOOD] * 3 + [[5, 5, float('nan'), 9]])
    with pytest.raises(ValueError, match=r'is \[5.0, 5.0, nan, 9.0\], which'):
        build(tmp_path, given)


@pytest.mark.parametrize('form', first_of(list(FORMATS)))
def test_boxes_that_are_ignored(form: str, tmp_path: Path,
                                lines: list) -> None:
    given = FORMATS[form](tmp_path, [[25, 20, 10, 15]] * NUM, 1)
    assert len(build(tmp_path, given)) == NUM and not lines


def polygon(box: list) -> list:
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def scaled(factor: float) -> Callable:
    return lambda box: polygon([factor * x for x in box])


def runs(box: list, plain: bool = False, turned: bool = False) -> dict:
    x, y, width, height = box
    pixels = np.zeros((SIZE, SIZE), np.uint8, 'F')
    pixels[y:y + height, x:x + width] = 1
    if turned:
        pixels = np.asfortranarray(pixels.T)
    if plain:
        ends = np.flatnonzero(np.diff(pixels.ravel('F'), prepend=0))
        counts = np.diff([0, *ends, pixels.size]).tolist()
        return dict(counts=counts, size=[SIZE, SIZE])
    found = mask.encode(pixels)
    return dict(found, counts=found['counts'].decode())


#: As x, y, width and height.
OBJECTS = [[2, 20, 8, 12], [4, 25, 10, 9], [1, 18, 6, 6], [3, 27, 9, 8],
           [5, 22, 7, 10]]
EXCHANGED = '5 of 5 outlines .* x and y of outlines are exchanged'


def turn(box: list) -> list:
    x, y, width, height = box
    return polygon([y, x, height, width])


def but_one(box: list) -> list:
    return scaled(3)(box) if box == OBJECTS[3] else polygon(box)


@pytest.mark.parametrize(('outline', 'words', 'said'), [
    (polygon, None, None), (runs, None, None),
    (partial(runs, plain=True), None, None),
    (scaled(1 / SIZE), 'goes beyond 0.875, and its boxes are up to 12 px',
     None),
    (turn, EXCHANGED, None), (partial(runs, turned=True), EXCHANGED, None),
    (scaled(3), r'5 of 5 outlines .* within \[6.0, 60.0, 30.0, 96.0\] .* of '
     r'an object in \[2.0, 20.0, 10.0, 32.0\]; give both in pixels', None),
    (but_one, None, '1 of 5 outlines .* lie beside their boxes'),
    # an object that is covered in part, and a box that is cut at it
    (lambda box: polygon([*box[:3], box[3] / 3]), None, None),
    (lambda box: polygon([0, 0, SIZE, SIZE]), None, None),
    # what mmdet refuses, or leaves out, itself
    (lambda box: [[1, 2, 3, 4]], None, None),
    (lambda box: polygon(box)[0], None, None),
    *[(lambda box, runs=runs: runs, None, None) for runs in (
        {}, [], None, dict(counts=[3]), dict(counts='', size=[0, 0]))],
])
@pytest.mark.parametrize('masks', [True, False])
def test_outlines(outline: Callable, words: Optional[str],
                  said: Optional[str], masks: bool, tmp_path: Path,
                  lines: list) -> None:
    """Without masks nobody reads them."""
    write_image(tmp_path / '0.png', SIZE)
    data = coco(1, SIZE, OBJECTS, dict.fromkeys(range(1, 6), 'x'))
    for each in data['annotations']:
        each.update(category_id=1, segmentation=outline(each['bbox']))
    data['categories'] = data['categories'][:1]
    write_json(tmp_path / 'a.json', data)
    given = dict(type='mmdet.CocoDataset', ann_file='a.json',
                 data_prefix=dict(img=''))
    stages = [dict(type='mmdet.LoadAnnotations', with_mask=masks)]
    if words is not None and masks:
        with pytest.raises(ValueError, match=words) as caught:
            build(tmp_path, given, *stages)
        assert is_user_error(caught.value)
        return
    assert len(build(tmp_path, given, *stages)) == 1
    assert len(lines) == (said is not None and masks)
    assert not lines or re.search(said, lines[0])

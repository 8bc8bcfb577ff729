# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Broken boxes of other formats than COCO's, which mmdet learns from."""

import json
import re
from pathlib import Path
from typing import Any, List, Optional

import pytest

import _loading
from _loading import LOAD, build_loader, write_image
from _tiny import first_of
from vim_mm.engine import boxes
from vim_mm.utils.cli import is_user_error

SIZE, NUM = 40, 4
GOOD = [5, 5, 25, 30]


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    return _loading.lines(monkeypatch, boxes)


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


def build(folder: Path, given: dict) -> Any:
    return build_loader(dict(
        given, data_root=str(folder), metainfo=dict(classes=('x', )),
        pipeline=[dict(LOAD, type='mmdet.LoadImageFromFile')]))


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


@pytest.mark.parametrize(('scale', 'words'), [
    (1., None), (1 / SIZE, 'goes beyond 0.75, and its boxes are up to 25 px')])
def test_outlines_in_shares_of_an_image(scale: float, words: Optional[str],
                                        tmp_path: Path) -> None:
    write_image(tmp_path / 'a.jpg', SIZE)
    corners = [5, 5, 25, 5, 25, 30, 5, 30]
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.jpg', width=SIZE, height=SIZE)],
        categories=[dict(id=1, name='x')],
        annotations=[dict(
            id=1, image_id=1, category_id=1, iscrowd=0, bbox=[5, 5, 20, 25],
            area=500., segmentation=[[scale * x for x in corners]])])))
    given = dict(type='mmdet.CocoDataset', ann_file='a.json',
                 data_prefix=dict(img=''))
    if words is None:
        assert len(build(tmp_path, given)) == 1
        return
    with pytest.raises(ValueError, match=words):
        build(tmp_path, given)

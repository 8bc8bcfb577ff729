# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of LVIS are looked at as those of COCO, and labels of any data set
that reads such a file are those of its classes."""

import sys
from pathlib import Path
from typing import Any, Callable, List

import pytest
from mmdet.datasets import CocoDataset
from test_coco_json import REFUSED, SAID, SIZE, good

import _loading
from _loading import build_loader, write_image, write_json
from vim_mm.registry import DATASETS
from vim_mm.utils import coco_boxes, coco_json
from vim_mm.utils.cli import is_user_error

#: What mmdet needs of the package.
LVIS = '''
import json
from collections import defaultdict


class LVIS:

    def __init__(self, annotation_path):
        with open(annotation_path) as file:
            self.dataset = json.load(file)
        assert type(self.dataset) is dict, 'format not supported'
        self.imgs = {each['id']: each for each in self.dataset['images']}
        self.cats = {each['id']: each for each in self.dataset['categories']}
        self.anns = {each['id']: each for each in self.dataset['annotations']}
        self.of, self.cat_img_map = defaultdict(list), defaultdict(list)
        for each in self.dataset['annotations']:
            self.of[each['image_id']].append(each['id'])
            self.cat_img_map[each['category_id']].append(each['image_id'])

    def get_cat_ids(self):
        return list(self.cats)

    def get_img_ids(self):
        return list(self.imgs)

    def get_ann_ids(self, img_ids):
        return [index for each in img_ids for index in self.of[each]]

    def load_imgs(self, ids):
        return [self.imgs[each] for each in ids]

    def load_anns(self, ids):
        return [self.anns[each] for each in ids]
'''
URL = 'http://images.cocodataset.org/'
V1, V05 = 'LVISV1Dataset', 'LVISV05Dataset'


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    return _loading.lines(monkeypatch, coco_boxes, coco_json)


@pytest.fixture(autouse=True)
def lvis(tmp_path: Path, monkeypatch: Any) -> None:
    """A package that a data set imports as it reads its file."""
    (tmp_path / 'lvis.py').write_text(LVIS)
    monkeypatch.delitem(sys.modules, 'lvis', raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))


def dataset(folder: Path, kind: str, spoil: Callable = lambda data: None,
            classes: tuple = ('a', 'b'), **more: Any) -> dict:
    data = good()
    changed = spoil(data)
    for image in data['images'] if kind == 'LVISV1Dataset' else ():
        image['coco_url'] = URL + image.pop('file_name')
    for index in range(6):
        write_image(folder / f'{index}.png', SIZE)
    write_json(folder / 'ann.json',
               changed if isinstance(changed, list) else data)
    return dict(
        type=f'mmdet.{kind}', data_root=str(folder), ann_file='ann.json',
        data_prefix=dict(img=''), metainfo=dict(classes=classes),
        pipeline=[dict(type='mmdet.LoadImageFromFile')], **more)


@pytest.mark.parametrize(('kind', 'what'), [
    *[(V1, what) for what in REFUSED], (V05, 'category_unlisted'),
    (V05, 'two_images')])
def test_what_contradicts_itself(kind: str, what: str,
                                 tmp_path: Path) -> None:
    spoil, words = REFUSED[what]
    with pytest.raises(ValueError, match=words.replace(
            "'0.png' and '5.png'", '.*0.png.*5.png')) as caught:
        build_loader(dataset(tmp_path, kind, spoil))
    assert is_user_error(caught.value) and 'ann.json' in str(caught.value)


@pytest.mark.parametrize(('kind', 'what', 'when'), [
    *[(V1, what, 'within') for what in SAID], (V1, None, 'within'),
    (V05, None, 'before'), (V05, 'twice', 'before')])
def test_what_is_left_out_is_counted(kind: str, what: Any, when: str,
                                     tmp_path: Path, lines: list) -> None:
    if when == 'before':
        import lvis  # noqa: F401
    assert len(build_loader(dataset(
        tmp_path, kind, SAID[what][0] if what else lambda data: None)))
    assert bool(lines) == bool(what)
    assert not hasattr(sys.modules['lvis'].LVIS.__init__, '__wrapped__')


@pytest.mark.parametrize('kind', [V1, V05])
def test_without_the_package(kind: str, tmp_path: Path,
                             monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, 'lvis', None)
    with pytest.raises(ValueError, match='lvis is not installed.*Install '
                       'that package') as caught:
        build_loader(dataset(tmp_path, kind))
    assert 'again' not in str(caught.value)


# ------------------------------------------------------------------- numbers


@DATASETS.register_module()
class Backwards(CocoDataset):
    """Numbers its classes from the last one."""

    def load_data_list(self) -> List[dict]:
        found = super().load_data_list()
        self.cat2label = {index: len(self.cat2label) - 1 - label
                          for index, label in self.cat2label.items()}
        return found


def turned(data: dict) -> None:
    data['categories'].reverse()


def twice(data: dict) -> None:
    data['categories'].append(dict(id=9, name='b'))


def again(data: dict) -> None:
    data['categories'].append(dict(data['categories'][0]))


@pytest.mark.parametrize(('kind', 'spoil', 'classes', 'words'), [
    ('LVISV1Dataset', None, ('a', 'b'), None),
    ('LVISV1Dataset', None, ('a', 'b', 'c'), None),
    ('LVISV1Dataset', None, ('other', 'b'), None),
    ('LVISV1Dataset', None, ('b', 'a'), "'a' of .* label 0, which .* is 'b'"),
    ('LVISV05Dataset', turned, ('a', 'b'), "'b' of .* label 0, .* is 'a'"),
    ('LVISV1Dataset', None, ('a', ), "'b' of .* label 1, .* none, as .* 1;"),
    ('CocoDataset', None, ('b', ), None),
    ('CocoDataset', turned, ('a', 'b'), "'b' of .* label 0, .* is 'a'"),
    ('CocoDataset', twice, ('a', 'b'), 'label 2, .* none, as there are 2;'),
    ('CocoDataset', again, ('a', 'b'), "'a' .* label 2, .* each once"),
    ('LVISV1Dataset', again, ('a', 'b'), None),
    ('Objects365V1Dataset', turned, ('a', 'b'), None),
    ('Objects365V1Dataset', None, ('b', 'a'), "'a' of .* label 0, .* is 'b'"),
    ('Objects365V2Dataset', turned, ('a', 'b'), "'b' of .* is 'a'"),
    ('CityscapesDataset', turned, ('a', 'b'), "'b' of .* is 'a'"),
    ('own', None, ('a', 'b'), "'a' of .* label 1, .* is 'b'"),
    ('own', None, ('b', 'a'), None)])
def test_labels_and_classes(kind: str, spoil: Any, classes: tuple, words: Any,
                            tmp_path: Path) -> None:
    given = dataset(tmp_path, kind, spoil or (lambda data: None), classes)
    if kind == 'own':
        given['type'] = 'vim_mm.Backwards'
    if words is None:
        assert len(build_loader(given)) == 6
        return
    with pytest.raises(ValueError, match=words) as caught:
        build_loader(given)
    assert is_user_error(caught.value) and '\n' not in str(caught.value)

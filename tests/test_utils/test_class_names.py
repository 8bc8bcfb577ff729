# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Classes of a config that its annotations do not know are named."""

import json
from pathlib import Path
from typing import Optional

import pytest

from vim_mm.utils.class_names import coco_names
from vim_mm.utils.data import check_data

PART = 'train_dataloader'


def check(folder: Path, kind: str, classes: Optional[tuple],
          scope: str = 'mmdet', **dataset) -> None:
    if classes:
        dataset.update(metainfo=dict(classes=classes))
    dataset = dict(type=kind, data_root=str(folder), **dataset)
    wrapped = dict(type='RepeatDataset', dataset=dataset)
    for each in (dataset, wrapped):
        cfg = {PART: dict(dataset=each), 'default_scope': scope}
        check_data(cfg, (PART, ))


def coco(folder: Path, *names: str, **more) -> str:
    categories = [dict(id=i + 7, name=name) for i, name in enumerate(names)]
    path = folder / 'ann.json'
    path.write_text(json.dumps(dict(more, categories=categories, images=[])))
    return path.name


@pytest.mark.parametrize(('classes', 'sentence'), [
    (('a', 'b', 'c'), None),
    (('a', 'c'), None),  # of some of them
    (('A', 'B'), r'names, A, B, .*ann.json has none: it has a, b, c, .*'
     r'`train_dataloader.dataset.metainfo=dict\(classes'),
    (None, r'person, bicycle, car, … \(80\), .* has none'),  # COCO's own
    (('a', 'dog'), r"has no classes \['dog'\]"),
    (('c', 'a'), 'numbers its classes a, c, and .* c, a: .*wrong names'),
])
@pytest.mark.parametrize('before', [{}, dict(info='"categories": [1]'),
                                    dict(info=['x' * 99] * 5000)])
def test_of_coco_files(classes: Optional[tuple], sentence: Optional[str],
                       before: dict, tmp_path: Path) -> None:
    given = dict(ann_file=coco(tmp_path, *'abc', **before))
    if sentence is None:
        check(tmp_path, 'CocoDataset', classes, **given)
        return
    with pytest.raises(ValueError, match=sentence):
        check(tmp_path, 'CocoDataset', classes, **given)


def test_a_long_list_of_categories_is_read(tmp_path: Path) -> None:
    names = [f'class number {index}' for index in range(20000)]
    coco(tmp_path, *names)
    assert coco_names(str(tmp_path / 'ann.json')) == names


def test_files_without_categories_are_left_to_the_library(
        tmp_path: Path) -> None:
    for text in ('{}', '{"categories": [', '{"categories": []}'):
        (tmp_path / 'ann.json').write_text(text)
        check(tmp_path, 'CocoDataset', ('a', ), ann_file='ann.json')
    (tmp_path / 'ann.json').write_text('')
    with pytest.raises(ValueError, match='ann.json is empty'):
        check(tmp_path, 'CocoDataset', ('a', ), ann_file='ann.json')


def test_data_sets_that_number_by_themselves(tmp_path: Path) -> None:
    path = coco(tmp_path, *'abc')
    check(tmp_path, 'Objects365V1Dataset', tuple('cba'), ann_file=path)
    with pytest.raises(ValueError, match='has none'):
        check(tmp_path, 'Objects365V1Dataset', ('A', ), ann_file=path)


@pytest.mark.parametrize('kind', ['VOCDataset', 'XMLDataset'])
def test_of_xml_files(kind: str, tmp_path: Path) -> None:
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'ids.txt').write_text('0\n1\n')
    for index, name in enumerate(('raccoon', 'fox')):
        (tmp_path / f'Annotations/{index}.xml').write_text(
            f'<annotation><object><name>{name}</name></object></annotation>')
    given = dict(ann_file='ids.txt', data_prefix=dict(sub_data_root=''))
    check(tmp_path, kind, ('fox', 'bear'), **given)
    with pytest.raises(ValueError, match='Annotations has none: it has fox'):
        check(tmp_path, kind, ('Fox', ), **given)


@pytest.mark.parametrize(('classes', 'sentence'), [
    (('fox', 'raccoon'), None),
    (('fox', 'bear'), None),  # of which there is no box
    (('fox', 'racoon'), "class 'racoon', which .* but 'raccoon', whose boxes"),
    (('fox', 'Raccoon'), "class 'Raccoon', which .* but 'raccoon'"),
])
def test_a_misspelt_name_of_xml_files(classes: tuple, sentence: Optional[str],
                                      tmp_path: Path) -> None:
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'ids.txt').write_text('0\n1\n')
    for index, name in enumerate(('raccoon', 'fox')):
        (tmp_path / f'Annotations/{index}.xml').write_text(
            f'<annotation><object><name>{name}</name></object></annotation>')
    given = dict(ann_file='ids.txt', data_prefix=dict(sub_data_root=''))
    if sentence is None:
        check(tmp_path, 'XMLDataset', classes, **given)
        return
    with pytest.raises(ValueError, match=sentence):
        check(tmp_path, 'XMLDataset', classes, **given)


@pytest.mark.parametrize(('value', 'said'), [
    ('NaN', 'NaN'), ('Infinity', 'Infinity'), ('-Infinity', '-Infinity'),
    ('"NaN"', None), ('1e400', None), ('"a, NaN."', None)])
def test_numbers_that_are_none(value: str, said: Optional[str],
                               tmp_path: Path) -> None:
    coco(tmp_path, 'a')
    path = tmp_path / 'ann.json'
    path.write_text(path.read_text().replace(
        '"images": []', f'"annotations": [{{"bbox": [1, {value}]}}]'))
    given = dict(ann_file='ann.json')
    if said is None:
        check(tmp_path, 'CocoDataset', ('a', ), **given)
        return
    with pytest.raises(ValueError, match=f'ann.json holds {said} at byte'):
        check(tmp_path, 'CocoDataset', ('a', ), **given)


@pytest.mark.parametrize(('second', 'agrees'), [
    (('a', 'b'), True), (('a', ), True), (('a', 'b', 'c'), True),
    (None, True), (('b', 'a'), False), (('a', 'c'), False), (('B', ), False)])
def test_training_and_validation_number_alike(second: Optional[tuple],
                                              agrees: bool) -> None:
    cfg = dict(default_scope='mmseg')
    for part, names in ((PART, ('a', 'b')), ('val_dataloader', second)):
        meta = dict(classes=names) if names else {}
        cfg[part] = dict(dataset=dict(type='BaseSegDataset', metainfo=meta))
    if agrees:
        check_data(cfg, (PART, 'val_dataloader'))
        return
    with pytest.raises(ValueError, match="Class [01] is '[ab]' in `train_"):
        check_data(cfg, (PART, 'val_dataloader'))
    check_data(cfg, (PART, ))


def test_names_from_a_file(tmp_path: Path) -> None:
    (tmp_path / 'names.txt').write_text('a\nb\n')
    given = dict(ann_file=coco(tmp_path, *'ba'))
    path = str(tmp_path / 'names.txt')
    with pytest.raises(ValueError, match='numbers its classes b, a'):
        check(tmp_path, 'CocoDataset', path, **given)


@pytest.mark.parametrize(('classes', 'sentence'), [
    (('ant', 'bee'), None),
    (('Ameise', 'Biene'), None),  # folders of ImageNet are not its names
    (None, None),
    (('bee', 'ant'), 'numbers its classes ant, bee, and .* bee, ant'),
    (('ant', 'wasp'), 'numbers its classes'),
    (('ant', ), 'holds 2 classes, ant, bee, and .* names 1, ant'),
])
@pytest.mark.parametrize('prefix', ['img', dict(img_path='img')])
def test_of_folders(classes: Optional[tuple], sentence: Optional[str],
                    prefix: object, tmp_path: Path) -> None:
    for name in ('ant', 'bee'):
        (tmp_path / 'img' / name).mkdir(parents=True)
    given = dict(data_prefix=prefix, scope='mmpretrain')
    if sentence is None:
        check(tmp_path, 'CustomDataset', classes, **given)
        return
    with pytest.raises(ValueError, match=sentence):
        check(tmp_path, 'CustomDataset', classes, **given)

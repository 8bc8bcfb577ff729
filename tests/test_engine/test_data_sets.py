# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of data sets that are missing, passed over or of another size."""

import json
import os
import re
from pathlib import Path
from typing import Any, Callable, List

import cv2
import numpy as np
import pytest

import _loading
from _loading import LOAD, build_loader, coco, write_image, write_json
from vim_mm.engine import data_sets
from vim_mm.utils.cli import is_user_error

SIZE = 32


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> List[str]:
    """What a run is told in its log."""
    return _loading.lines(monkeypatch, data_sets)


def image(path: Path, width: int = SIZE, height: int = SIZE) -> None:
    write_image(path, width, height)


def label_map(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((SIZE, SIZE), np.uint8))


def write(folder: Path) -> None:
    for index in range(4):
        image(folder / f'img/{index}.png')
        image(folder / f'cls/{"ab"[index % 2]}/{index}.png')
        label_map(folder / f'ann/{index}_map.png')
    (folder / 'list.txt').write_text('a/0.png 0\nb/1.png 1\n')
    write_json(folder / 'ann.json', coco(4, SIZE, [[2, 2, 9, 9]], {1: 'x'}))


SETS = dict(
    cls=dict(type='mmpretrain.CustomDataset', data_prefix='cls'),
    lines=dict(type='mmpretrain.CustomDataset', data_prefix='cls',
               ann_file='list.txt', classes=['a', 'b']),
    det=dict(type='mmdet.CocoDataset', ann_file='ann.json',
             data_prefix=dict(img='img/'), metainfo=dict(classes=('x', ))),
    seg=dict(type='mmseg.BaseSegDataset', img_suffix='.png',
             seg_map_suffix='_map.png',
             data_prefix=dict(img_path='img', seg_map_path='ann'),
             metainfo=dict(classes=('x', 'y')),
             pipeline=[LOAD, dict(type='mmseg.LoadAnnotations')]))
MISSING = dict(cls='cls/a/0.png', lines='cls/b/1.png', det='img/2.png',
               seg='ann/3_map.png')


def build(folder: Path, kind: str, **more: Any) -> Any:
    dataset = dict(dict(data_root=str(folder), pipeline=[LOAD]),
                   **dict(SETS[kind], **more))
    return build_loader(dataset)


@pytest.mark.parametrize('kind', SETS)
def test_whole_data_sets(kind: str, tmp_path: Path, lines: list) -> None:
    write(tmp_path)
    assert len(build(tmp_path, kind))
    assert not lines


@pytest.mark.parametrize('kind', SETS)
def test_a_part_of_a_data_set(kind: str, tmp_path: Path, lines: list) -> None:
    write(tmp_path)
    assert len(build(tmp_path, kind, indices=1)) == 1
    assert not lines


@pytest.mark.parametrize('kind', ['lines', 'det', 'seg'])
@pytest.mark.parametrize('instead', ['nothing', 'a dead link', 'a link'])
def test_a_missing_file(kind: str, instead: str, tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / MISSING[kind]
    path.rename(tmp_path / 'away.png')
    if instead != 'nothing':
        path.symlink_to(tmp_path / ('away.png' if instead == 'a link'
                                    else 'gone.png'))
    if instead == 'a link':
        assert len(build(tmp_path, kind))
        return
    with pytest.raises(FileNotFoundError, match=f'1 files of .*{path}'):
        build(tmp_path, kind)


@pytest.mark.parametrize(('kind', 'more', 'words'), [
    ('seg', dict(seg_map_suffix='.png'), '4 files of .*ann/0.png'),
    ('seg', dict(seg_map_suffix='_mapp.png'), '4 files of .*ann/0_mapp.png'),
    ('det', dict(data_prefix=dict(img='ann/')), '4 files of .*ann/0.png'),
    ('lines', dict(data_prefix='img'), '2 files of .*img/a/0.png'),
])
def test_prefixes_and_suffixes(kind: str, more: dict, words: str,
                               tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match=words) as caught:
        build(tmp_path, kind, **more)
    assert is_user_error(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(('kind', 'path', 'words'), [
    ('seg', 'img/4.jpg', r"1 images in .*4.jpg', are left out: .*'.png'. "
     r'\(`img_suffix`\)'),
    ('seg', 'img/deep/4.PNG', '1 images in'),
    ('seg', 'img/.4.jpg', None),
    ('seg', 'img/notes.txt', None),
    ('cls', 'cls/a/9.webp', r"1 images in .*9.webp', are left out: .*"
     r'\(`extensions`\)'),
    ('cls', 'cls/a/9.PNG', None),
    ('lines', 'cls/a/9.webp', None),
    ('det', 'img/9.webp', None),
])
def test_images_that_are_passed_over(kind: str, path: str, words: Any,
                                     tmp_path: Path, lines: list) -> None:
    write(tmp_path)
    image(tmp_path / 'extra.png')
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / 'extra.png').rename(tmp_path / path)
    build(tmp_path, kind)
    if words is None:
        assert not lines
        return
    said, = lines
    assert re.search(words, said), said


def turned(path: Path) -> None:
    """An image whose EXIF says that it stands on its side."""
    from PIL import Image
    picture = Image.new('RGB', (40, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(path, 'JPEG', exif=exif)


@pytest.mark.parametrize(('make', 'width', 'height', 'read'), [
    (lambda path: image(path, 40, 20), 40, 20, None),
    (lambda path: image(path, 40, 20), 20, 40, '40 x 20 px'),
    (lambda path: image(path, 40, 20), 80, 40, '40 x 20 px'),
    (turned, 20, 40, None),
    (turned, 40, 20, '20 x 40 px'),
])
def test_sizes_in_a_json(make: Callable, width: int, height: int, read: Any,
                         tmp_path: Path) -> None:
    write(tmp_path)
    make(tmp_path / 'img/0.png')
    path = tmp_path / 'ann.json'
    data = json.loads(path.read_text())
    data['images'][0].update(width=width, height=height)
    path.write_text(json.dumps(data))
    if read is None:
        assert len(build(tmp_path, 'det')) == 4
        return
    with pytest.raises(ValueError, match=f'img/0.png has {read} .*ann.json '
                       f'says {width} x {height}'):
        build(tmp_path, 'det')


def test_exchanged_sizes_are_told_before_boxes(tmp_path: Path) -> None:
    """Right boxes look like corners where sizes are wrong."""
    write(tmp_path)
    data = coco(4, 0, [[15, 2, 18, 16]], {1: 'x'})
    for index, each in enumerate(data['images']):
        image(tmp_path / f'img/{index}.png', 40, 20)
        each.update(width=20, height=40)
    write_json(tmp_path / 'ann.json', data)
    with pytest.raises(ValueError, match='has 40 x 20 px as it is read'):
        build(tmp_path, 'det')
    for each in data['images']:
        each.update(width=40, height=20)
    write_json(tmp_path / 'ann.json', data)
    assert len(build(tmp_path, 'det')) == 4


@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('kind', [
    dict(type='mmdet.XMLDataset'), dict(type='mmdet.VOCDataset'),
    dict(SETS['seg'], ann_file='ann.json')], ids=lambda kind: kind['type'])
def test_a_json_in_the_place_of_a_list(kind: dict, indent: Any,
                                       tmp_path: Path) -> None:
    write(tmp_path)
    data = json.loads((tmp_path / 'ann.json').read_text())
    (tmp_path / 'ann.json').write_text(json.dumps(data, indent=indent))
    more = {} if 'pipeline' in kind else dict(
        data_prefix=dict(sub_data_root='VOC2007'),
        metainfo=dict(classes=('x', )))
    with pytest.raises(FileNotFoundError, match='takes each line of its '
                       r"`ann_file` for .* first is '\{") as caught:
        build(tmp_path, 'det', **{'ann_file': 'ann.json', **kind, **more})
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 1100


def test_a_missing_xml(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / 'list.txt').write_text('1\n2\n')
    with pytest.raises(FileNotFoundError, match="XMLDataset.* reads '.*/1.xml'"
                       ', which is not there; look at `ann_file`'):
        build(tmp_path, 'det', type='mmdet.XMLDataset', ann_file='list.txt',
              data_prefix=dict(sub_data_root=''))


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / 'img/1.png').write_bytes(b'')
    with pytest.raises(ValueError, match='img/1.png is empty'):
        build(tmp_path, 'det')


@pytest.mark.parametrize('load', [
    dict(LOAD, ignore_empty=True),
    dict(LOAD, backend_args=dict(backend='lmdb', db_path='x')),
    dict(type='LoadImageFromNDArray')])
def test_what_is_not_read_from_files(load: dict, tmp_path: Path) -> None:
    write(tmp_path)
    os.remove(tmp_path / 'img/1.png')
    if 'NDArray' in load['type']:
        load = dict(load, type='mmdet.LoadImageFromNDArray')
    assert len(build(tmp_path, 'det', pipeline=[load])) == 4


def test_of_many_images_some_are_looked_at(tmp_path: Path,
                                           monkeypatch: Any) -> None:
    write(tmp_path)
    for number, seen in ((2, [0, 2]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])):
        part, = data_sets.parts_of(build(tmp_path, 'det').dataset)
        found = [info['img_id'] for info in data_sets.infos(part, number)]
        assert found == seen

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pickles and YAML files give data, and run nothing."""

import builtins
import collections
import importlib
import io
import pickle
import re
import sys
from pathlib import Path
from typing import Any, Callable

import mmdet
import mmengine
import mmpretrain
import mmseg
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.fileio import load
from mmengine.structures import InstanceData

from vim_mm.registry import DATASETS
from vim_mm.utils.config import read_config
from vim_mm.utils.data import check_data
from vim_mm.utils.plain_files import TRUST_ENV, UnsafeFileError, load_plain
from vim_mm.utils.setup_env import ARRAYS, PICKLES

# text that sets an attribute if it is run
FLAG = 'import builtins; builtins.was_run = True'


class Runs:

    def __reduce__(self) -> tuple:
        return exec, (FLAG, )


class RunsAttribute:

    def __reduce__(self) -> tuple:
        return getattr, (collections.OrderedDict, 'fromkeys')


@pytest.fixture(autouse=True)
def ran() -> Any:
    yield
    if hasattr(builtins, 'was_run'):
        del builtins.was_run


PLAIN = [
    dict(a=[1, 2.5, None, True, 'x', b'y', (1, ), 3 + 2j, 10**30]),
    [set('ab'), frozenset('c'), slice(1, 2), range(3), bytearray(b'z')],
    collections.OrderedDict(a=1),
    dict(boxes=np.eye(3, dtype='f4'), label=np.int64(3), none=np.array([])),
    np.array([{'a': 1}, 'b', None], dtype=object),
    np.array(['ab', 'c']),
    np.zeros(2, dtype=[('a', 'i4'), ('b', 'f8')]),
    dict(x=torch.arange(6.).view(2, 3)[:, 1:], size=torch.Size([1, 2])),
]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            equal(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and (one == other).all()
    return type(one) is type(other) and one == other


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('index', range(len(PLAIN)))
def test_plain_data(index: int, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps(PLAIN[index], protocol))
    assert equal(load(path), PLAIN[index])
    mmengine.dump(PLAIN[index], str(path))
    assert equal(mmengine.load(str(path)), PLAIN[index])


@pytest.mark.parametrize('value', [
    Runs(), [1, dict(a=Runs())], RunsAttribute(), Path('x'),
    InstanceData(x=torch.ones(1)), print,
    np.array([Runs()], dtype=object)
])
@pytest.mark.parametrize('suffix', ['pkl', 'pickle'])
def test_objects_are_refused_with_the_flag(value: Any, suffix: str,
                                           tmp_path: Path,
                                           monkeypatch: Any) -> None:
    path = tmp_path / f'x.{suffix}'
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(UnsafeFileError,
                       match=rf'x.{suffix} would build .*{TRUST_ENV}=1'):
        load(path)
    assert not hasattr(builtins, 'was_run')
    monkeypatch.setenv(TRUST_ENV, '1')
    load(path)
    assert hasattr(builtins, 'was_run') == ('Runs object' in repr(value))


class Stored(BaseDataset):
    METAINFO = dict(classes=('a', ))


@pytest.mark.parametrize('suffix', ['pkl', 'yaml', 'yml'])
def test_annotations(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f'x.{suffix}'
    content = dict(metainfo={}, data_list=[dict(img_path='a.png', box=[1, 2])])
    mmengine.dump(content, str(path))
    assert Stored(ann_file=str(path))[0]['box'] == [1, 2]
    if suffix == 'pkl':
        content['data_list'][0]['x'] = Runs()
        path.write_bytes(pickle.dumps(content))
    else:
        path.write_text(f'!!python/object/apply:exec [{FLAG!r}]')
    with pytest.raises(UnsafeFileError, match=f'x.{suffix} '):
        Stored(ann_file=str(path))
    assert not hasattr(builtins, 'was_run')


@pytest.mark.parametrize('blob', [b'', b'\x80', b'no pickle', b'\x80\x04.',
                                  b'(lp0\nI1\n', b'cos\n'])
def test_damaged_pickles_are_named(blob: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'x.pkl'
    path.write_bytes(blob)
    with pytest.raises(UnsafeFileError, match='x.pkl is truncated or no pick'):
        load(path)


def test_a_tensor_that_is_a_pickle(tmp_path: Path) -> None:
    """Its bytes are read without restrictions by torch's own function."""

    class Tensor:

        def __reduce__(self) -> tuple:
            data = io.BytesIO()
            torch.save(Runs(), data)
            return torch.storage._load_from_bytes, (data.getvalue(), )

    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps(Tensor()))
    with pytest.raises(UnsafeFileError):
        load(path)
    assert not hasattr(builtins, 'was_run')


@pytest.mark.parametrize('tag', [
    'model: !!python/object/apply:exec ["{flag}"]',
    'model: !!python/object/new:exec ["{flag}"]',
    'model: !!python/name:builtins.exec',
    'model: !!python/module:os',
    'model: !!python/object:builtins.exec {{}}',
])
def test_configs_run_nothing(tag: str, tmp_path: Path) -> None:
    path = tmp_path / 'x.yml'
    path.write_text(tag.format(flag=FLAG))
    with pytest.raises(UnsafeFileError, match='asks for more than plain data'):
        Config.fromfile(str(path))
    with pytest.raises(ValueError, match='x.yml.* not valid.*more than plain'):
        read_config(str(path))
    assert not hasattr(builtins, 'was_run')
    path.write_text('model: {type: X, list: [1, 2.5, null, "a"]}')
    assert read_config(str(path)).model.list == [1, 2.5, None, 'a']


def test_readers_of_single_libraries(tmp_path: Path,
                                     monkeypatch: Any) -> None:
    import mmdet.datasets.openimages as openimages
    import mmpretrain.datasets.cifar as cifar
    import mmseg.utils.io as mmseg_io
    blob = pickle.dumps(Runs())
    for module in (cifar, mmseg_io):
        assert equal(module.pickle.loads(pickle.dumps(np.eye(2), 2),
                                         encoding='latin1'), np.eye(2))
        with pytest.raises(UnsafeFileError, match='exec'):
            module.pickle.loads(blob)
    path = tmp_path / 'x.npy'
    np.save(path, np.array([Runs()], dtype=object), allow_pickle=True)
    with pytest.raises(UnsafeFileError,
                       match=f'x.npy is a pickle.*{TRUST_ENV}'):
        openimages.np.load(path, allow_pickle=True)
    assert not hasattr(builtins, 'was_run')
    monkeypatch.setenv(TRUST_ENV, '1')
    openimages.np.load(path, allow_pickle=True)
    assert hasattr(builtins, 'was_run')
    np.save(path, np.eye(2))
    assert equal(openimages.np.load(path, allow_pickle=True), np.eye(2))
    assert openimages.np.eye is np.eye


def open_images(folder: Path) -> dict:
    (folder / 'labels.csv').write_text('/m/1,square')
    (folder / 'tree.json').write_text('{}')
    (folder / 'ann.csv').write_text(
        'ImageID,,,,,,,,,,,,\n0,x,/m/1,1,0.25,0.5,0.25,0.5,0,0,0,0,0')
    return dict(
        type='mmdet.OpenImagesDataset', ann_file='ann.csv',
        label_file='labels.csv', hierarchy_file='tree.json',
        data_prefix=dict(img=''), pipeline=[],
        meta_file='x.pkl')


def coco(folder: Path) -> dict:
    (folder / 'ann.json').write_text(
        '{"images": [], "annotations": [], "categories": []}')
    return dict(ann_file='ann.json', split_file='x.pkl', split='train')


@pytest.mark.parametrize(('config', 'plain'), [
    (open_images, [dict(filename='0.jpg', ori_shape=(40, 80, 3))]),
    (lambda folder: dict(coco(folder), type='mmdet.RefCocoDataset',
                         data_prefix=dict(img_path='')), None),
    (lambda folder: dict(coco(folder), type='mmpretrain.RefCOCO',
                         data_prefix=''), None),
])
def test_data_sets_with_a_pickle_beside(config: Callable, plain: Any,
                                        tmp_path: Path) -> None:
    path, cfg = tmp_path / 'x.pkl', config(tmp_path)
    path.write_bytes(pickle.dumps(Runs()))
    cfg.update(data_root=str(tmp_path))
    with pytest.raises(UnsafeFileError, match=f'x.pkl would .*{TRUST_ENV}'):
        DATASETS.build(cfg)
    assert not hasattr(builtins, 'was_run')
    path.unlink()
    with pytest.raises(FileNotFoundError, match='set `train.*_file`'):
        check_data(dict(train_dataloader=dict(dataset=cfg)),
                   ('train_dataloader', ))
    if plain:
        path.write_bytes(pickle.dumps(plain))
        info = DATASETS.build(cfg).get_data_info(0)
        assert info['instances'][0]['bbox'] == [20., 10., 40., 20.]


def test_a_toolkit_of_a_data_set(tmp_path: Path, monkeypatch: Any) -> None:
    """mmdet's DODDataset reads by the package d_cube."""
    (tmp_path / 'd_cube').mkdir()
    (tmp_path / 'd_cube/data_util.py').write_text(
        'import pickle\n'
        'def read(path):\n'
        '    with open(path, "rb") as file:\n'
        '        return pickle.load(file)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    read = importlib.import_module('d_cube.data_util').read
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(UnsafeFileError, match='x.pkl would build'):
        read(path)
    path.write_bytes(pickle.dumps([1]))
    assert read(path) == [1] and not hasattr(builtins, 'was_run')
    for name in ('d_cube', 'd_cube.data_util'):
        del sys.modules[name]


def test_all_that_read_pickles_are_known() -> None:
    """A new version of a library may have a data set more that does."""
    found = set()
    for library in (mmdet, mmpretrain, mmseg):
        root = Path(library.__file__).parent
        for path in [*(root / 'datasets').rglob('*.py'),
                     *(root / 'utils').glob('io.py')]:
            if re.search(r'pickle\.loads?\(|allow_pickle=True',
                         path.read_text()):
                found.add('.'.join(path.relative_to(
                    root.parent).with_suffix('').parts))
    assert found == {*PICKLES, ARRAYS} - {'d_cube.data_util'}


def test_an_open_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps(Runs()))
    with path.open('rb') as file:
        with pytest.raises(UnsafeFileError, match='x.pkl would build'):
            load_plain(file)

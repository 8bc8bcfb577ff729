# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pickles that claim more than they hold end in a sentence, at once."""

import io
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from _claims import ALL, COPIES, LENGTHS, MEMO, MISSING, Calls, as_archive
from _hostile import judged
from mmengine.fileio import load
from mmengine.runner import CheckpointLoader

from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.pickle_bounds import check_claims
from vim_mm.utils.pickle_parts import reconstruct
from vim_mm.utils.plain_files import (_BUILTINS, _PLAIN, UnsafeFileError,
                                      load_plain)


@pytest.mark.parametrize('what', ALL)
def test_annotations_that_claim_more_than_they_hold(what: str,
                                                    tmp_path: Path) -> None:
    path = tmp_path / 'x.pkl'
    path.write_bytes(ALL[what])
    with path.open('rb') as file:
        for read in (lambda: load(path), lambda: load_plain(file),
                     lambda: load_plain(io.BytesIO(ALL[what]))):
            with judged(len(ALL[what])) as verdict:
                read()
            assert isinstance(verdict.error, UnsafeFileError)
            assert not verdict.problem
    if what in {**LENGTHS, **MEMO}:
        with pytest.raises(UnsafeFileError, match='x.pkl is truncated or no'):
            load(path)


@pytest.mark.parametrize('write', [as_archive, Path.write_bytes])
@pytest.mark.parametrize('what', ALL)
def test_checkpoints_that_claim_more_than_they_hold(
        what: str, write: Callable, tmp_path: Path) -> None:
    path = tmp_path / 'x.pth'
    write(path, ALL[what])
    with judged(len(ALL[what])) as verdict:
        CheckpointLoader.load_checkpoint(str(path), 'cpu', 'silent')
    # torch numbers objects in a dict, so that a number is but a name
    if not what.startswith('LONG_BINPUT'):
        assert isinstance(verdict.error, CheckpointError)
    assert not verdict.problem


@pytest.mark.parametrize('what', ['bytearray, protocol 2', 'bytes, protocol 2',
                                  'BINUNICODE 4294967295'])
def test_a_tensor_whose_own_pickle_claims_more(what: str,
                                               tmp_path: Path) -> None:
    """torch reads it, inside of what is read as plain data."""
    path = tmp_path / 'x.pkl'
    path.write_bytes(
        pickle.dumps(Calls(torch.storage._load_from_bytes, ALL[what])))
    with judged() as verdict:
        load(path)
    assert isinstance(verdict.error, UnsafeFileError) and not verdict.problem


PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('what', COPIES)
def test_what_is_there_once_is_not_built_often(what: str, protocol: int,
                                               tmp_path: Path) -> None:
    few, many = ([COPIES[what]() for _ in range(n)] for n in (2, 2000))
    assert len(load_plain(io.BytesIO(pickle.dumps(few, protocol)))) == 2
    data = pickle.dumps(many, protocol)
    path = tmp_path / 'x.pkl'
    path.write_bytes(data)
    with judged(len(data)) as verdict, pytest.raises(
            UnsafeFileError, match='x.pkl .*builds far more than it holds'):
        load(path)
    assert not verdict.problem


@pytest.mark.parametrize('protocol', PROTOCOLS)
@pytest.mark.parametrize('what', MISSING)
def test_data_that_are_not_there(what: str, protocol: int) -> None:
    data = pickle.dumps([MISSING[what]()], protocol)
    with judged(len(data)) as verdict:
        load_plain(io.BytesIO(data))
    assert isinstance(verdict.error, UnsafeFileError) and not verdict.problem


@pytest.mark.parametrize('what', [
    'bytearray, protocol 2', 'encode', 'bytearray', 'frozenset', 'ordered',
    'size', 'counter'])
def test_checkpoints_that_build_the_same_again(what: str,
                                               tmp_path: Path) -> None:
    if what in COPIES:
        data = pickle.dumps([COPIES[what]() for _ in range(2000)], 2)
    elif what in MISSING:
        data = pickle.dumps([MISSING[what]()], 2)
    else:
        data = ALL[what]
    as_archive(tmp_path / 'x.pth', data)
    with judged(len(data)) as verdict:
        CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'), 'cpu')
    assert isinstance(verdict.error, CheckpointError) and not verdict.problem


@pytest.mark.parametrize('part', sorted('.'.join(each) for each in (
    *_PLAIN, *(('builtins', name) for name in _BUILTINS))))
@pytest.mark.parametrize('state', [
    b'}X\x03\0\0\0__aX\1\0\0\0xs',
    b'N}X\x08\0\0\0__name__X\1\0\0\0xs\x86',
    b'N}X\x0c\0\0\0__defaults__)s\x86'])
def test_what_builds_objects_is_not_changed(part: str, state: bytes) -> None:
    module, _, name = part.rpartition('.')
    whole = f'\x80\2c{module}\n{name}\n'.encode('latin1') + state + b'b.'
    known = [dict(vars(each), name=each.__name__, given=each.__defaults__)
             for each in (reconstruct, torch._utils._rebuild_tensor_v2)]
    with pytest.raises(UnsafeFileError):
        load_plain(io.BytesIO(whole))
    assert known == [
        dict(vars(each), name=each.__name__, given=each.__defaults__)
        for each in (reconstruct, torch._utils._rebuild_tensor_v2)]


@pytest.mark.parametrize('reader', ['load_plain', 'load_checkpoint'])
def test_memory_that_there_is_not(reader: str, tmp_path: Path,
                                  monkeypatch: Any) -> None:
    """An honest file may be too large for a machine."""

    def none(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    torch.save(dict(a=torch.ones(1)), tmp_path / 'x.pth')
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps([1]))
    monkeypatch.setattr(torch, 'load', none)
    monkeypatch.setattr('vim_mm.utils.plain_files._Plain.load', none)
    with pytest.raises((UnsafeFileError, CheckpointError),
                       match='does not fit into memory, or claims'):
        if reader == 'load_plain':
            load(tmp_path / 'x.pkl')
        else:
            CheckpointLoader.load_checkpoint(str(tmp_path / 'x.pth'), 'cpu')


def test_arrays_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    import mmdet.datasets.openimages as openimages
    path = tmp_path / 'x.npy'
    for shape in ((1 << 40, ), (1 << 50, ), (1 << 20, 1 << 42)):
        with path.open('wb') as file:
            np.lib.format.write_array_header_1_0(
                file, dict(descr='<f8', fortran_order=False, shape=shape))
            file.write(b'abc')
        with judged() as verdict:
            openimages.np.load(path, allow_pickle=True)
        assert isinstance(verdict.error, UnsafeFileError), shape
        assert not verdict.problem


# ------------------------------------------------------------ honest pickles

MANY = [dict(name=f'{index}', box=[index, .5], data=b'b' * (index % 300))
        for index in range(700)]


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_honest_pickles(protocol: int, tmp_path: Path) -> None:
    whole = pickle.dumps(MANY, protocol)
    own = io.BytesIO()
    pickle._Pickler(own, protocol).dump(MANY)  # in Python
    for data in (whole, pickletools.optimize(whole), own.getvalue()):
        path = tmp_path / 'x.pkl'
        path.write_bytes(data)
        assert load(path) == MANY


ARRAYS = [
    *(np.arange(6).reshape(2, 3).astype(kind) for kind in ('f4', '>f8', 'S3',
                                                           '<U2', 'i1')),
    *(np.array([value]) for value in (True, 1 + 2j, b'', 'a')),
    np.zeros((0, ), np.int8), np.zeros((3, 0)), np.array(2.5),
    np.asfortranarray(np.arange(6).reshape(2, 3)), np.ones(9999),
    np.array([(1, .5)], [('a', 'i4'), ('b', 'f8')]),
    np.array([[1, 'a'], [None, 2.5]], object), np.float32(.5),
    np.array([np.ones(2), [np.array(3)], dict(a=np.zeros(1))], object),
    OrderedDict(a=1), {1, 2}, frozenset('ab'), bytearray(b'a'), range(3)]


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_several_in_one_file(protocol: int, tmp_path: Path) -> None:
    """Each is read from where the one before ended."""
    values = [MANY, ARRAYS, 'b', 3]
    data = b''.join(pickle.dumps(value, protocol) for value in values)
    path = tmp_path / 'x.bin'
    path.write_bytes(data)
    with path.open('rb') as file:
        found = [load_plain(file) for _ in values]
        values[1] = pickle.loads(pickle.dumps(ARRAYS, protocol))
        assert repr(found) == repr(values)
        for own, other in zip(found[1], values[1]):
            assert type(own) is type(other)
            assert getattr(own, 'dtype', 0) == getattr(other, 'dtype', 0)
        with pytest.raises(UnsafeFileError, match='has no end'):
            load_plain(file)
    memory = io.BytesIO(data)
    assert repr([load_plain(memory) for _ in values]) == repr(values)


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_honest_tensors(protocol: int) -> None:
    whole = torch.arange(12.).reshape(3, 4)
    values = [whole, whole[1:, ::2], whole.t(), torch.ones(()),
              torch.ones(0, 3), torch.ones(1).expand(5), whole.size()]
    found = load_plain(io.BytesIO(pickle.dumps(values, protocol)))
    for own, other in zip(found, values):
        assert type(own) is type(other) and torch.equal(
            torch.as_tensor(own), torch.as_tensor(other))


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_cut_anywhere(protocol: int) -> None:
    data = pickle.dumps(dict(a=[1, 'text' * 99, b'bytes'], b=1.5, c=10**40),
                        protocol)
    for end in range(len(data)):
        with pytest.raises(UnsafeFileError, match='truncated or no pickle'):
            load_plain(io.BytesIO(data[:end]))
    check_claims(io.BytesIO(data))

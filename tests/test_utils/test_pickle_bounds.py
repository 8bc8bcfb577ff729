# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Pickles that claim more than they hold end in a sentence, at once."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
import torch
from _claims import ALL, LENGTHS, MEMO, Calls, as_archive
from _hostile import judged
from mmengine.fileio import load
from mmengine.runner import CheckpointLoader

from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.pickle_bounds import check_claims
from vim_mm.utils.plain_files import UnsafeFileError, load_plain


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


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_several_in_one_file(protocol: int, tmp_path: Path) -> None:
    """Each is read from where the one before ended."""
    data = b''.join(pickle.dumps(value, protocol) for value in (MANY, 'b', 3))
    path = tmp_path / 'x.bin'
    path.write_bytes(data)
    with path.open('rb') as file:
        found = [load_plain(file) for _ in range(3)]
        assert found == [MANY, 'b', 3]
        with pytest.raises(UnsafeFileError, match='has no end'):
            load_plain(file)
    memory = io.BytesIO(data)
    assert [load_plain(memory) for _ in range(3)] == [MANY, 'b', 3]


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_cut_anywhere(protocol: int) -> None:
    data = pickle.dumps(dict(a=[1, 'text' * 99, b'bytes'], b=1.5, c=10**40),
                        protocol)
    for end in range(len(data)):
        with pytest.raises(UnsafeFileError, match='truncated or no pickle'):
            load_plain(io.BytesIO(data[:end]))
    check_claims(io.BytesIO(data))

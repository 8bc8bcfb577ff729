# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Folders that appear at once; the zoo's tests let its writer die."""

import hashlib
import os
from pathlib import Path
from typing import Dict, List

import pytest

from vim_mm.utils import files
from vim_mm.utils.files import new_folder, sha256


def content(folder: Path) -> Dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full(tmp_path: Path) -> Path:
    folder = tmp_path / 'full'
    folder.mkdir()
    (folder / 'a').write_text('old')
    return folder


@pytest.mark.parametrize('mark', [None, '', '.x'])
@pytest.mark.parametrize('there', [None, 'empty', 'full'])
def test_it_appears_when_it_is_whole(tmp_path, there, mark):
    dst = tmp_path / 'deep' / 'folder'
    if there:
        dst.mkdir(parents=True)
    if there == 'full':
        (dst / 'a').write_text('old')
        (dst / 'inner').mkdir()
    before = dst.is_dir() and names(dst)
    with new_folder(dst, mark=mark) as draft:
        (draft / 'b').write_text('new')
        assert (dst.is_dir() and names(dst)) == before
    assert content(dst) == dict(b='new') and names(dst.parent) == ['folder']
    # what every folder may be read by is, this one too
    (tmp_path / 'plain').mkdir()
    assert dst.stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize('failure', [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there(full, failure):
    with pytest.raises(failure):
        with new_folder(full) as draft:
            (draft / 'b').write_text('new')
            raise failure
    assert content(full) == dict(a='old') and names(full.parent) == ['full']


@pytest.mark.parametrize('failing', [0, 1])
def test_a_failing_rename_brings_the_old_one_back(full, failing, monkeypatch):
    replace, calls = os.replace, []

    def fails_once(source, target):
        calls.append(source)
        if len(calls) == failing + 1:
            raise OSError('no')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fails_once)
    monkeypatch.setattr(files, 'exchange', lambda *_: False)
    with pytest.raises(OSError, match='no'):
        with new_folder(full) as draft:
            (draft / 'b').write_text('new')
    assert content(full) == dict(a='old') and names(full.parent) == ['full']


def test_what_a_dead_process_left_is_no_obstacle(full):
    for leftover in ('.full.new', '.full.old'):
        (full.parent / leftover).mkdir()
        (full.parent / leftover / 'c').write_text('stale')
    with new_folder(full, mark='') as draft:
        (draft / 'b').write_text('new')
    assert content(full) == dict(b='new') and names(full.parent) == ['full']


@pytest.mark.parametrize('kind', ['folder', 'file'])
def test_with_an_error_nothing_is_replaced(full, kind):
    dst = full if kind == 'folder' else full / 'a'
    with pytest.raises(RuntimeError, match=f"'{dst}' is there already: name"):
        with new_folder(dst, RuntimeError):
            raise AssertionError('nothing is to be written')
    assert content(full) == dict(a='old') and names(full.parent) == ['full']


def test_a_link_to_an_empty_folder_stays_one(tmp_path):
    (tmp_path / 'target').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'target')
    with new_folder(tmp_path / 'link', RuntimeError) as draft:
        (draft / 'b').write_text('new')
    assert (tmp_path / 'link').is_symlink()
    assert content(tmp_path / 'target') == dict(b='new')


@pytest.mark.parametrize('size', [0, 5, (1 << 20) + 3])
def test_sha256_of_bytes_and_of_a_file(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / 'file').write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert sha256(data) == sha256(tmp_path / 'file') == expected

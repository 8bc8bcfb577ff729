# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A file operation fails: a sentence, nothing lost, and the next one works."""

import fcntl
import os
import shutil
import warnings
from random import Random
from typing import Callable, Dict

import filelock
import pytest
import torch
from _failing import ERRORS, failing

from vim_mm.utils import drafts
from vim_mm.zoo import Zoo, ZooError, files
from vim_mm.zoo.locking import check_writable

#: What of a zoo is read, and what is changed: which names are there then.
READS = ('names', 'cards', 'verify', 'load', 'push')
CHANGES = dict(save=('n', ), overwrite=('m', ), remove=('m', ), add=('x', 'y'),
               add_one=('x', ), pull=('x', ))


@pytest.fixture
def versions(tmp_path, make_card, make_tensors) -> Zoo:
    """Zoos to copy, and a tar."""
    for place, names in dict(zoo=('good', 'm'), source=('x', 'y')).items():
        for name in names:
            Zoo(tmp_path / place).save(make_card(name), make_tensors(),
                                       dict(w=torch.ones(2)))
    Zoo(tmp_path / 'source').push('x', tmp_path / 'x.tar')
    return tmp_path


def actions(zoo: Zoo, root, make_card, make_tensors) -> Dict[str, Callable]:
    source = root / 'source'

    def save(name: str, overwrite: bool = False) -> None:
        zoo.save(make_card(name, version='2'), make_tensors(2),
                 overwrite=overwrite)

    return dict(
        names=zoo.names,
        cards=lambda: zoo.cards({}),
        verify=zoo.verify,
        load=lambda: zoo.load('m'),
        push=lambda: zoo.push('m', root / 'out' / 'm.tar'),
        save=lambda: save('n'),
        overwrite=lambda: save('m', True),
        remove=lambda: zoo.remove('m'),
        add=lambda: zoo.add(source, problems={}),
        add_one=lambda: zoo.add(source / 'x'),
        pull=lambda: zoo.pull(str(root / 'x.tar')))


@pytest.mark.parametrize('name', [*READS, *CHANGES])
def test_a_file_operation_that_fails(versions, make_card, make_tensors, name):
    rng, place = Random(name), versions / 'copy'
    seen, step = set(), 0
    while True:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(versions / 'zoo', place)
        zoo, error = Zoo(place), None
        action = actions(zoo, versions, make_card, make_tensors)[name]
        with warnings.catch_warnings(), failing(step,
                                                rng.choice(ERRORS)) as end:
            warnings.simplefilter('ignore')
            try:
                action()
            except ZooError as raised:
                error = raised
        if end.failed is None:
            break
        seen.add(end.failed)
        check_afterwards(zoo, name, error)
        zoo.save(make_card('m', version='3'), make_tensors(3), overwrite=True)
        assert zoo.verify() == [] and zoo.card('m').version == '3'
        assert [n for n in os.listdir(place) if n[0] == '.'] == ['.lock']
        step += rng.randrange(1, 3)  # `make reliability` tries each
    assert seen


def check_afterwards(zoo: Zoo, name: str, error) -> None:
    """What is said of a change is so: it is made, or it is not."""
    there = zoo.names()
    assert 'good' in there and zoo.verify() == []
    made = error is None or 'a power cut may undo' in str(error)
    if name in CHANGES and made and name != 'add':
        assert (name == 'remove') != set(CHANGES[name]).issubset(there)
        assert name != 'overwrite' or zoo.card('m').version == '2'
    if not made:
        kept = {'good': '1', 'm': '1'}
        assert {n: zoo.card(n).version for n in kept} == kept
        assert name == 'add' or there == ['good', 'm']


@pytest.mark.parametrize('error', [
    OSError(37, 'No locks available'),
    PermissionError(13, 'Permission denied'),
    NotImplementedError('no flock here')])
def test_a_lock_that_there_is_not(zoo, make_card, make_tensors, monkeypatch,
                                  error):

    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, 'acquire', acquire)
    said = getattr(error, 'strerror', None) or 'no flock here'
    with pytest.raises(ZooError, match=f'lock of the zoo .*{said}'):
        zoo.save(make_card('n'), make_tensors())
    assert zoo.names() == ['m']


@pytest.mark.parametrize('change', ['save', 'remove', 'refused'])
def test_a_lock_that_cannot_be_unlocked(zoo, make_card, make_tensors,
                                        monkeypatch, change):
    """What was done is done, and the next one can change the zoo."""
    real = fcntl.flock

    def flock(handle, operation):
        if operation == fcntl.LOCK_UN:
            raise OSError(5, 'Input/output error')
        real(handle, operation)

    monkeypatch.setattr(fcntl, 'flock', flock)
    if change == 'refused':
        with pytest.raises(ZooError, match='already has a module'):
            zoo.save(make_card('m'), make_tensors())
    elif change == 'save':
        zoo.save(make_card('n'), make_tensors())
    else:
        zoo.remove('m')
    assert zoo.names() == dict(
        save=['m', 'n'], remove=[], refused=['m'])[change]
    with open(zoo.root / '.lock') as file:  # as another process does
        real(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    zoo.save(make_card('x'), make_tensors())


@pytest.mark.parametrize('change', ['save', 'overwrite', 'remove', 'push'])
def test_a_change_that_is_not_flushed(zoo, make_card, make_tensors, tmp_path,
                                      monkeypatch, change):
    """It is there, and the sentence says that it may not last."""
    folder = tmp_path if change == 'push' else zoo.root
    real = drafts.sync_folder

    def sync(path):
        if path == folder:
            raise OSError(5, 'Input/output error')
        real(path)

    monkeypatch.setattr(drafts, 'sync_folder', sync)
    action = dict(
        save=lambda: zoo.save(make_card('n'), make_tensors()),
        overwrite=lambda: zoo.save(make_card('m', version='2'),
                                   make_tensors(2), overwrite=True),
        remove=lambda: zoo.remove('m'),
        push=lambda: zoo.push('m', tmp_path / 'm.tar'))[change]
    with pytest.raises(ZooError, match='is changed as was asked.*a power cut '
                       'may undo the change; check the disk'):
        action()
    assert zoo.names() == dict(
        save=['m', 'n'], remove=[]).get(change, ['m'])
    assert change != 'overwrite' or zoo.card('m').version == '2'
    assert change != 'push' or Zoo(tmp_path / 'other').pull(
        str(tmp_path / 'm.tar'))[0] == 'm'
    assert zoo.verify() == []


@pytest.mark.parametrize('what', ['folder', 'loop', 'link', 'nowhere'])
def test_what_stands_in_the_place_of_a_lock(zoo, make_card, make_tensors,
                                            what):
    lock, card = zoo.root / '.lock', zoo.root / 'm' / 'card.json'
    lock.unlink()
    before = card.read_bytes()
    dict(
        folder=lock.mkdir,
        loop=lambda: lock.symlink_to('.lock'),
        link=lambda: lock.symlink_to('m/card.json'),
        nowhere=lambda: lock.symlink_to('/nowhere/x'))[what]()
    with pytest.raises(ZooError, match='lock of the zoo .*delete its file'):
        zoo.save(make_card('n'), make_tensors())
    assert card.read_bytes() == before and zoo.names() == ['m']


@pytest.mark.parametrize('place', ['~nobody_of_this_name/zoo', 'a' * 5000,
                                   'a' * 300, 'a\nb', '/dev/null/zoo',
                                   '/proc/self/fd/zoo'])
def test_odd_places_for_a_zoo(tmp_path, monkeypatch, make_card, make_tensors,
                              place):
    monkeypatch.chdir(tmp_path)
    zoo = Zoo(place)
    with pytest.raises(ZooError):
        zoo.names()
    try:
        zoo.save(make_card(), make_tensors())
        assert zoo.names() == ['m']
    except ZooError as error:
        assert str(error)


def test_a_reader_that_cannot_tell_does_not_try_for_ever(zoo, monkeypatch):
    (zoo.root / 'm' / 'card.json').write_text('{')

    def stale(*_):
        raise OSError(116, 'Stale file handle')

    monkeypatch.setattr(files.OpenFolder, 'is_at', stale)
    with pytest.raises(ZooError, match='not valid JSON'):
        zoo.card('m')
    check_writable(zoo.root)

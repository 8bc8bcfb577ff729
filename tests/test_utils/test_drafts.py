# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is written under another name first, and who may take that over."""

import errno
import fcntl
import os
from pathlib import Path
from typing import Any, Callable, List

import pytest
from _failing import failing, killed

from vim_mm.utils import drafts, files
from vim_mm.utils.cli import is_user_error
from vim_mm.utils.drafts import NotFlushedError
from vim_mm.utils.files import new_folder, write_atomic


def names(folder: Path) -> List[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(dst: Path, text: str) -> None:
    with new_folder(dst) as draft:
        (draft / 'a').write_text(text)
        (draft / 'inner').mkdir()


def read(dst: Path) -> str:
    return (dst / 'a' if dst.is_dir() else dst).read_text()


#: What writes a text under a name.
WRITES = dict(file=write_atomic, folder=write_folder)


@pytest.mark.parametrize('exchanges', [True, False])
@pytest.mark.parametrize('kind', WRITES)
def test_what_a_killed_process_left_is_taken_over(tmp_path, monkeypatch, kind,
                                                  exchanges):
    if not exchanges:
        monkeypatch.setattr(files, 'exchange', lambda *_: False)
    dst, write, step, left = tmp_path / 'x', WRITES[kind], 0, set()
    while True:
        write(dst, 'old')
        was = killed(step, lambda: write(dst, 'a longer new text'))
        left.update(names(tmp_path))
        if dst.exists() or exchanges or kind == 'file':
            assert read(dst) in ('old', 'a longer new text')
        write(dst, 'newer')
        assert read(dst) == 'newer' and names(tmp_path) == ['x']
        step += 1
        if not was:
            break
    assert step > 5 and len(left) > 1


@pytest.mark.parametrize('kind', WRITES)
def test_two_that_write_at_once(tmp_path, kind):
    """The second takes another name, and neither touches the other's."""
    dst = tmp_path / 'x'
    if kind == 'folder':
        with new_folder(dst) as draft:
            (draft / 'a').write_text('first')
            write_folder(dst, 'second')
            assert read(dst) == 'second'
    else:

        def content(file: Any) -> None:
            file.write(b'first')
            write_atomic(dst, 'second')
            assert read(dst) == 'second'

        write_atomic(dst, content)
    assert read(dst) == 'first' and names(tmp_path) == ['x']


@pytest.mark.parametrize('error', [errno.ENOLCK, errno.ENOSYS, errno.EBADF,
                                   errno.EWOULDBLOCK])
@pytest.mark.parametrize('kind', WRITES)
def test_a_disk_that_locks_nothing(tmp_path, monkeypatch, kind, error):

    def flock(*_: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, 'flock', flock)
    for text in ('one', 'two'):
        WRITES[kind](tmp_path / 'x', text)
        assert read(tmp_path / 'x') == text
    held = error == errno.EWOULDBLOCK  # by another process, whose it is
    assert len(names(tmp_path)) == 1 + held


@pytest.mark.parametrize('kind', WRITES)
def test_a_system_without_locks(tmp_path, monkeypatch, kind):
    for module in (drafts, files):
        monkeypatch.setattr(module, 'LOCKS', False)
    for text in ('one', 'two'):
        WRITES[kind](tmp_path / 'x', text)
        assert read(tmp_path / 'x') == text and names(tmp_path) == ['x']


@pytest.mark.parametrize('what', ['file', 'folder', 'link', 'fifo'])
@pytest.mark.parametrize('kind', WRITES)
def test_what_stands_in_the_place_of_a_draft(tmp_path, kind, what):
    place = tmp_path / dict(file='.x.0.draft', folder='.x.new')[kind]
    other = tmp_path / 'other'
    other.write_text('kept')
    dict(
        file=lambda: place.write_text('left'),
        folder=place.mkdir,
        link=lambda: place.symlink_to(other),
        fifo=lambda: os.mkfifo(place))[what]()
    WRITES[kind](tmp_path / 'x', 'new')
    assert read(tmp_path / 'x') == 'new' and other.read_text() == 'kept'


# ------------------------------------------------------ the flush of a name


@pytest.fixture
def last_flush(tmp_path, monkeypatch) -> Callable[[int], None]:
    """Lets the flush of the folder of what is renamed fail."""

    def fail(error: int) -> None:
        real = os.fsync

        def fsync(handle: int) -> None:
            if os.readlink(f'/proc/self/fd/{handle}') == str(tmp_path):
                raise OSError(error, os.strerror(error))
            real(handle)

        monkeypatch.setattr(os, 'fsync', fsync)

    return fail


@pytest.mark.parametrize('error', [errno.EIO, errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize('kind', WRITES)
def test_a_change_that_is_not_flushed_says_so(tmp_path, last_flush, kind,
                                              error):
    dst = tmp_path / 'x'
    WRITES[kind](dst, 'old')
    last_flush(error)
    with pytest.raises(NotFlushedError,
                       match=rf"'{dst}' is changed .*{os.strerror(error)}.*a "
                       'power cut may undo') as caught:
        WRITES[kind](dst, 'new')
    assert read(dst) == 'new' and is_user_error(caught.value)


@pytest.mark.parametrize('error', [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS,
                                   errno.EACCES])
@pytest.mark.parametrize('kind', WRITES)
def test_a_system_that_flushes_no_folders(tmp_path, last_flush, kind, error):
    last_flush(error)
    WRITES[kind](tmp_path / 'x', 'new')
    assert read(tmp_path / 'x') == 'new'


def test_a_folder_is_not_made_by_what_is_not_flushed_in_it(tmp_path,
                                                           monkeypatch):
    """A file of the draft is no change that was made."""
    write_folder(tmp_path / 'x', 'old')

    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(drafts, 'sync_folder', fails)
    with pytest.raises(OSError, match='Input/output') as caught:
        with new_folder(tmp_path / 'x') as draft:
            write_atomic(draft / 'a', 'new')
    assert caught.value.filename == str(tmp_path / 'x')
    assert read(tmp_path / 'x') == 'old' and names(tmp_path) == ['x']


@pytest.mark.parametrize('kind', WRITES)
def test_what_fails_names_the_file(tmp_path, kind):
    """Each operation: the old one or the new one, in a sentence."""
    dst, step = tmp_path / 'x', 0
    while True:
        WRITES[kind](dst, 'old')
        said = None
        with failing(step, errno.ENOSPC) as end:
            try:
                WRITES[kind](dst, 'new')
            except Exception as error:
                assert is_user_error(error), repr(error)
                said = str(error)
        made = said is None or 'a power cut may undo' in said
        assert read(dst) == ('new' if made else 'old'), end.failed
        WRITES[kind](dst, 'newer')
        assert names(tmp_path) == ['x']
        step += 1
        if end.failed is None:
            break
    assert step > 8

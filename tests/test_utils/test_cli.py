# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How tools end: exit codes, sentences and tracebacks."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
from _hostile import ESCAPE
from mmengine.registry import Registry

from vim_mm.utils.checkpoint import CheckpointError, load_from_local
from vim_mm.utils.cli import print_json, run_cli, visible


def fails_with(error: BaseException) -> Callable:

    def main() -> None:
        raise error

    return main


def end_of(main: Callable) -> int:
    with pytest.raises(SystemExit) as end:
        run_cli(main)
    return end.value.code or 0


@pytest.fixture(autouse=True)
def foreign_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'argv', [str(tmp_path / 'tool.py')])


def test_codes() -> None:
    assert end_of(lambda: None) == 0
    assert end_of(lambda: 3) == 3


@pytest.mark.parametrize('error', [
    FileNotFoundError('There is no file x.'),
    CheckpointError('x is truncated.'),
])
def test_a_mistake_is_a_sentence(error: Exception,
                                 capsys: pytest.CaptureFixture) -> None:
    assert end_of(fails_with(error)) == 1
    err = capsys.readouterr().err
    assert err.startswith(f'Error: {error}') and err.count('\n') == 1


@pytest.mark.parametrize('kind', [ValueError, CheckpointError])
def test_a_strangers_text_is_harmless_and_short(
        kind: type, capsys: pytest.CaptureFixture) -> None:
    ours = type('OurError', (kind, ), dict(__module__='vim_mm.x'))
    error = ours(f'{ESCAPE} {"x" * 9999} the fix')
    assert end_of(fails_with(error)) == 1
    err = capsys.readouterr().err
    assert err.replace('\n', '').isprintable() and len(err) < 4200
    assert 'the fix' in err and '\\x1b[31mred' in err


@pytest.mark.parametrize('code', [errno.ENOENT, errno.ENAMETOOLONG])
def test_a_long_name_of_a_file_is_cut(
        code: int, capsys: pytest.CaptureFixture) -> None:
    error = OSError(code, os.strerror(code), f'{"x" * 9999}.xml')
    assert end_of(fails_with(error)) == 1
    err = capsys.readouterr().err
    assert os.strerror(code) in err and ".xml'" in err and len(err) < 500


def test_json_and_lines_for_a_terminal(capsys: pytest.CaptureFixture) -> None:
    for value in (ESCAPE, 'Zürich', ['\u202e'], dict(a='\n')):
        print_json(value)
        out = capsys.readouterr().out
        assert json.loads(out) == value
        assert out.replace('\n', '').isprintable()
    assert visible('a\nb\tc') == 'a\\nb\\tc'
    assert len(visible('x' * 9999)) == 1000


def test_a_mistake_found_while_building_from_a_config(
        capsys: pytest.CaptureFixture) -> None:
    registry = Registry('thing')
    registry.register_module(name='load', module=load_from_local)
    main = lambda: registry.build(  # noqa: E731
        dict(type='load', filename='/no/such.pth'))
    assert end_of(main) == 1
    assert 'There is no checkpoint file' in capsys.readouterr().err


@pytest.mark.parametrize('error', [KeyError('x'), ValueError('not ours')])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_cli(fails_with(error))


def test_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('VIM_MM_TRACEBACK', '1')
    with pytest.raises(CheckpointError):
        run_cli(fails_with(CheckpointError('x')))


def test_interrupt_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert end_of(fails_with(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == 'Interrupted.\n'


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = ('from vim_mm.utils.cli import run_cli\n'
            'run_cli(lambda: print("x" * 10**6))')
    tool = subprocess.Popen([sys.executable, '-c', code],
                            stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)
    tool.stdout.read(1)
    tool.stdout.close()
    assert tool.wait() == 128 + signal.SIGPIPE and not tool.stderr.read()


def test_another_broken_pipe_is_a_bug() -> None:
    with pytest.raises(BrokenPipeError):
        run_cli(fails_with(BrokenPipeError()))

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Runs of their own: logged, named when they break, ended on Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from vim_mm.utils.processes import RunError, run_logged


def talk() -> None:
    print('12 - INFO - Epoch(train) [1][5/10]  loss: 0.5')
    print('12 - INFO - nothing of interest')
    os.write(2, b'from a library\n')


def fail() -> None:
    raise ValueError('this is wrong')


def exit_at_once() -> None:
    os._exit(9)


def test_what_it_prints_is_logged_and_progress_shown(tmp_path: Path) -> None:
    out = io.StringIO()
    log = tmp_path / 'new' / 'log.txt'
    # what is not there is missed where it is needed
    run_logged('It', talk, log, Console(file=out), ['no_such_library'])
    assert 'nothing of interest' in log.read_text()
    assert 'from a library' in log.read_text()
    assert out.getvalue().strip() == 'Epoch(train) [1][5/10]  loss: 0.5'


@pytest.mark.parametrize('run', [fail, exit_at_once])
def test_one_that_breaks_is_named_with_its_log(run, tmp_path: Path) -> None:
    log = tmp_path / 'log.txt'
    with pytest.raises(RunError, match=f'It failed; its log is {log}') as end:
        run_logged('It', run, log, Console(file=io.StringIO()))
    assert ('this is wrong' in str(end.value)) == (run is fail)


SCRIPT = '''
import time
from pathlib import Path
from rich.console import Console
from vim_mm.utils import processes
from vim_mm.utils.cli import run_cli
processes._PATIENCE = 1
def run():
    import os, signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a busy library may
    Path('pid').write_text(str(os.getpid()))
    time.sleep(60)
run_cli(lambda: processes.run_logged('It', run, Path('log.txt'), Console()))
'''


def heed_interrupts() -> None:
    """Tests that run in the background of a shell ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_leaves_no_process_behind(tmp_path: Path) -> None:
    (tmp_path / 'script.py').write_text(SCRIPT)
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    process = subprocess.Popen([sys.executable, 'script.py'],
                               cwd=tmp_path,
                               env=env,
                               preexec_fn=heed_interrupts,
                               stderr=subprocess.PIPE,
                               text=True)
    for _ in range(600):
        if (tmp_path / 'pid').is_file() and (tmp_path / 'pid').read_text():
            break
        time.sleep(.1)
    process.send_signal(signal.SIGINT)  # to the parent alone
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and err == 'Interrupted.\n'
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / 'pid').read_text()), 0)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The matrix of versions says what ran, what failed and what could not run."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Sequence

import matrix
import pytest

VERSIONS = dict(
    torch='2.4.1', numpy='1.26.4', cv2='4.12.0', transformers='5.24.0',
    ops='stand-in')


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Results of a cell's commands, by what they run; none really runs."""
    results = dict(
        pip=(0, '', ''),
        versions=(0, json.dumps(VERSIONS), ''),
        pytest=(0, '....\n12 passed in 3.4s', ''))

    def call(command: Sequence[str], overlay: Path = None):
        what = next((x for x in ('pip', 'pytest') if x in command), 'versions')
        results.setdefault('commands', []).append(list(command))
        return subprocess.CompletedProcess(command, *results[what])

    monkeypatch.setattr(matrix, 'call', call)
    return results


def run(capsys: pytest.CaptureFixture, *args: str) -> tuple:
    code = matrix.main(args)
    return code, capsys.readouterr().out


def test_a_table_of_versions_that_were_imported(outcomes, capsys):
    code, said = run(capsys)
    assert code == 0
    rows = [line for line in said.splitlines() if line.startswith('| ')]
    assert len(rows) == 1 + len(matrix.CELLS)
    for cell, row in zip(matrix.CELLS, rows[1:]):
        assert row.startswith(f'| {cell.name} | 2.4.1 | 1.26.4 | 4.12.0 | ')
        assert '12 passed' in row


def test_what_cannot_be_installed_is_untested(outcomes, capsys):
    outcomes['pip'] = (1, '', 'hm\nERROR: no matching distribution\n')
    code, said = run(capsys, '--only', 'numpy 1.26', '--only', 'as installed')
    assert code == 0
    assert '| numpy 1.26 | – | – | – | – | – | untested: no matching ' in said
    assert '| as installed | 2.4.1 ' in said
    assert sum('pytest' in command for command in outcomes['commands']) == 1


@pytest.mark.parametrize(('what', 'result', 'said'), [
    ('pytest', (1, 'FAILED a\n1 failed, 2 passed in 3s', ''), '1 failed'),
    ('pytest', (1, '', ''), 'no output'),
    ('versions', (1, '', 'Traceback\nImportError: no torch'), 'no torch'),
])
def test_a_failure_is_one(outcomes, capsys, what, result, said):
    outcomes[what] = result
    code, text = run(capsys, '--only', 'opencv 5')
    assert code == 1
    assert said in text.splitlines()[-1]


def test_other_packages_keep_their_versions():
    pins = matrix.others(['numpy==1.26.*', 'Huggingface_Hub', 'torch>=2'])
    names = {pin.partition('==')[0].lower() for pin in pins}
    assert not {'numpy', 'huggingface_hub', 'torch'} & names
    assert f'timm=={metadata.version("timm")}' in pins
    assert 'torchvision' in names


@pytest.mark.slow
def test_the_fake_counts_as_compiled_ops(tmp_path):
    cell = next(cell for cell in matrix.CELLS if cell.files)
    assert matrix.fill(cell, tmp_path) == ''
    code = (f'{matrix._VERSIONS}\n'
            'import torch, mmcv.ops, mmcv._ext\n'
            'assert mmcv._ext.__file__.endswith("compiled_ops.py")\n'
            'box = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 3.9]])\n'
            'assert len(mmcv.ops.nms(box, torch.ones(2), .5)[1]) == 1')
    done = matrix.call([sys.executable, '-c', code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])['ops'] == 'compiled'


def test_its_tests_are_there():
    assert all((matrix.ROOT / test.partition('::')[0]).is_file()
               for test in matrix.SMOKE)

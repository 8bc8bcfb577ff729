# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The command ``vim-mm``."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Tuple

import pytest

from vim_mm.utils import commands
from vim_mm.utils.cli import is_user_error

WANTED = ('train', 'test', 'infer', 'rank', 'bake', 'zoo', 'doctor',
          'new-task', 'compare', 'export', 'generate', 'release', 'moe',
          'convert-trunk', 'draw-gates')


def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
          *args: str) -> Tuple[int, str, str]:
    """Exit code and output of ``vim-mm ARGS``."""
    monkeypatch.setattr(sys, 'argv', ['vim-mm', *args])
    with pytest.raises(SystemExit) as caught:
        commands.main()
    return (caught.value.code or 0, *capsys.readouterr())


@pytest.mark.parametrize('args', [(), ('-h', ), ('--help', )])
def test_alone_it_lists_all_commands(args, monkeypatch, capsys):
    code, out, _ = shell(monkeypatch, capsys, *args)
    lines = {line.split()[0]: line.strip() for line in out.splitlines()
             if line.strip()}
    assert code == 0 and set(WANTED) <= set(lines)
    assert 'Train a model' in lines['train']
    assert not {'launch', 'demo'} & set(lines)
    for name, path in commands.commands().items():
        assert len(commands.first_line(path)) >= 10, path
        assert len(lines[name].split()) > 2


def test_version(monkeypatch, capsys):
    assert shell(monkeypatch, capsys, '--version')[1].startswith('vim_mm 0.')


@pytest.mark.parametrize('given,near', [('trian', 'train'), ('new_task',
                                                             'new-task'),
                                        ('ranks', 'rank')])
def test_an_unknown_one_suggests_the_nearest(given, near, monkeypatch,
                                             capsys):
    code, _, err = shell(monkeypatch, capsys, given)
    assert code == 1 and f'did you mean {near}?' in err
    assert 'Traceback' not in err


def test_one_like_no_other_lists_all(monkeypatch, capsys):
    assert 'there are bake, ' in shell(monkeypatch, capsys, 'xyzzy')[2]


def test_a_command_runs_its_tool(monkeypatch, capsys, tmp_path):
    code, out, _ = shell(monkeypatch, capsys, 'train', '--help')
    assert code == 0 and out.startswith('usage: vim-mm train')
    code, out, _ = shell(monkeypatch, capsys, 'rank', '--help')
    assert code == 0 and out.startswith('usage: vim-mm rank')
    assert shell(monkeypatch, capsys, 'zoo', 'score', '--help')[1] == out
    code, _, err = shell(monkeypatch, capsys, 'zoo', 'list',
                         str(tmp_path / 'none'))
    assert code == 1 and err.startswith('Error: There is no zoo')
    assert shell(monkeypatch, capsys, 'train')[0] == 2


def test_sentences_of_tools_are_no_tracebacks(monkeypatch, capsys):
    code, _, err = shell(monkeypatch, capsys, 'infer', 'x.jpg', '--model',
                         'nonsense')
    assert code == 1 and 'is not NAME=CONFIG,CHECKPOINT' in err
    assert 'Traceback' not in err
    tool = commands.load_tool(commands.commands()['infer'])
    with pytest.raises(ValueError) as caught:
        tool.parse_model('x')
    monkeypatch.setattr(sys, 'argv', ['/elsewhere/vim-mm'])
    assert is_user_error(caught.value)


def test_an_environment_in_the_script_s_folder_is_not_the_script(monkeypatch):
    packages = Path(pytest.__file__).parents[1]
    assert packages.name == 'site-packages'
    monkeypatch.setattr(sys, 'argv', [str(packages.parents[2] / 'mine.py')])
    with pytest.raises(ValueError) as caught:
        pytest.approx(1, abs=-1) == 2
    assert not is_user_error(caught.value)


def test_installs_have_it():
    found = [each for each in entry_points(group='console_scripts')
             if each.name == 'vim-mm']
    if not found:
        pytest.skip('vim_mm was installed before it had a command')
    assert found[0].load() is commands.main


def test_tools_lie_in_the_package_or_beside_it():
    for path in commands.commands().values():
        assert Path(path).is_file()

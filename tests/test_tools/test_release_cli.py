# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The commands of tools/release.py, on tiny folders."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from _upstream import config, release, write_images
from mmengine.config import Config

from vim_mm.models.generators import read_upstream_card
from vim_mm.utils.cli import is_user_error
from vim_mm.zoo import ZooError

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        'release_tool', REPO / 'tools' / 'release.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_publish_folders(tool: ModuleType, tmp_path: Path,
                         capsys: pytest.CaptureFixture) -> None:
    """Folders of the command line stand in for those of the config."""
    nowhere = tmp_path / 'nowhere'
    Config(config(nowhere, nowhere, tmp_path / 'work')).dump(
        tmp_path / 'cfg.py')
    train = write_images(tmp_path / 'train', 8)
    held_out = write_images(tmp_path / 'held_out', 6, seed=1)
    command = ['publish', str(tmp_path / 'cfg.py'), '--out',
               str(tmp_path / 'r')]
    with pytest.raises(FileNotFoundError, match='nowhere'):
        tool.main(command)
    tool.main(command + [
        '--data', str(train), '--held-out', str(held_out), '--max-images', '5'
    ])
    card = read_upstream_card(tmp_path / 'r')
    assert card.num_images == 8 and card.leak['num_train'] == 5
    assert card.to_json() in capsys.readouterr().out


@pytest.mark.parametrize('option', ['--data', '--held-out'])
def test_one_folder_alone(tool: ModuleType, tmp_path: Path,
                          option: str) -> None:
    with pytest.raises(ValueError, match='belong together'):
        tool.main(['publish', 'x.py', '--out', 'r', option, str(tmp_path)])


def test_check(tool: ModuleType, tmp_path: Path,
               capsys: pytest.CaptureFixture) -> None:
    folder = release(tmp_path / 'r')
    tool.main(['check', folder])
    assert 'is whole' in capsys.readouterr().out
    (tmp_path / 'r' / 'codebook.safetensors').write_bytes(b'')
    with pytest.raises(ZooError, match='damaged') as caught:
        tool.main(['check', folder])
    assert is_user_error(caught.value)


def test_apply(tool: ModuleType, tmp_path: Path,
               capsys: pytest.CaptureFixture) -> None:
    folder = release(tmp_path / 'r')
    source = write_images(tmp_path / 'images', 3, (9, 9))
    tool.main(['apply', folder, str(source), '--out', str(tmp_path / 'x')])
    assert 'Wrote 3 re-represented images' in capsys.readouterr().out
    assert len(list((tmp_path / 'x').glob('*.png'))) == 3

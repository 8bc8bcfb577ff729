# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A file that a pipeline cannot read is named, in workers, too."""

import subprocess
import sys
from pathlib import Path

import pytest
from _outside import write_project
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope

from _tiny import KINDS, SCOPES
from vim_mm.utils.unreadable import UnreadableFileError

ROOT = Path(__file__).resolve().parents[2]
PATHS = dict(cls='cls/red/0.png', det='img/0.png', seg='img/0.png')
BROKEN = {
    b'': r'is empty \(0 bytes\)',
    b'no image': 'is damaged, or no image',
    b'\x89PNG\r\n\x1a\n and no more': 'is damaged, or no image',
}


def read(config: Path) -> dict:
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    paths = [dataset.get_data_info(i)['img_path'] for i in range(4)]
    return dataset[paths.index(next(p for p in paths if p.endswith('0.png')))]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('content', BROKEN)
def test_images(kind: str, content: bytes, tmp_path: Path,
                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_project(tmp_path, kind)
    read(config)
    (tmp_path / 'data' / PATHS[kind]).write_bytes(content)
    with pytest.raises(UnreadableFileError,
                       match=f'{PATHS[kind]} {BROKEN[content]}; write it'):
        read(config)


@pytest.mark.parametrize('content', BROKEN)
def test_label_maps(content: bytes, tmp_path: Path,
                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_project(tmp_path, 'seg')
    (tmp_path / 'data/maps/0.png').write_bytes(content)
    with pytest.raises(UnreadableFileError,
                       match=f'maps/0.png {BROKEN[content]}'):
        read(config)


@pytest.mark.parametrize('backend', ['cv2', 'pillow', 'tifffile'])
def test_of_any_decoder(backend: str, tmp_path: Path) -> None:
    if backend == 'tifffile':
        pytest.importorskip('tifffile')
    path = tmp_path / 'x.tif'
    path.touch()
    stage = dict(type='LoadImageFromFile', imdecode_backend=backend)
    init_default_scope('mmpretrain')
    with pytest.raises(UnreadableFileError, match='x.tif is empty'):
        Compose([stage])(dict(img_path=str(path)))


def test_other_mistakes_keep_their_words(tmp_path: Path) -> None:
    init_default_scope(SCOPES['cls'])
    write_project(tmp_path, 'cls')
    path = str(tmp_path / 'data/cls/red/0.png')

    def broken(data: dict) -> dict:
        raise KeyError('scale')

    with pytest.raises(KeyError, match='scale'):
        Compose([broken])(dict(img_path=path))
    with pytest.raises(FileNotFoundError, match='none.png'):
        Compose([dict(type='LoadImageFromFile')])(
            dict(img_path=str(tmp_path / 'none.png')))


@pytest.mark.slow
def test_the_tool_says_it_in_a_sentence(tmp_path: Path) -> None:
    more = 'train_dataloader.update(num_workers=1)\n'
    config = write_project(tmp_path, 'seg', more)
    for path in (tmp_path / 'data/img').iterdir():
        path.write_bytes(b'')
    result = subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), config.name],
        cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith(
        'Error: The file data/img/')
    assert 'is empty (0 bytes)' in result.stderr

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A file that a pipeline cannot read is named, in workers, too."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import numpy as np
import pytest
from _outside import write_project
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from _tiny import KINDS, SCOPES
from vim_mm.utils.unreadable import (PipelineError, UnreadableFileError,
                                     ends_as_images_do, flaw_of)

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


class Images(BaseDataset):
    """Three of them."""

    def load_data_list(self) -> List[dict]:
        return [dict(img_path=f'{i}.png') for i in range(3)]


def keep(data: dict) -> dict:
    return data


def forget(data: dict) -> None:
    data['x'] = 0


class Crop:

    def __call__(self, data: dict) -> None:
        return None


@pytest.mark.parametrize('stage', [forget, Crop()])
@pytest.mark.parametrize('test_mode', [True, False])
def test_a_stage_that_gives_none_is_named(stage: Any,
                                          test_mode: bool) -> None:
    name = 'forget' if stage is forget else 'Crop'
    data = Images(pipeline=[keep, stage, keep], test_mode=test_mode,
                  max_refetch=4)
    whose = 'the image' if test_mode else 'each of 5 images, such as'
    with pytest.raises(PipelineError, match=f'stage {name} .* None in the '
                       f"place of {whose} '1.png'; let it return"):
        data[1]
    with pytest.raises(KeyError):
        Images(pipeline=[lambda data: data['y'], stage])[1]


def test_a_stage_that_gives_none_at_times() -> None:
    given = iter([None, None, None, dict(x=1)])
    assert Images(pipeline=[lambda data: next(given)])[0] == dict(x=1)
    # it is not found again
    given = iter([None] * 3 + [dict(x=1)] * 9)
    with pytest.raises(Exception, match='Cannot find valid image after 2'):
        Images(pipeline=[lambda data: next(given)], max_refetch=2)[0]


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


# ------------------------------------------------------ how a file ends

FORMATS = ('BMP', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')


def encoded(kind: str, folder: Path, mode: str = 'RGB') -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = folder / f'x.{kind.lower()}'
    Image.fromarray(noise).convert(mode).save(path, kind)
    return path


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('kind', FORMATS)
def test_whole_files(kind: str, mode: str, tmp_path: Path) -> None:
    path = encoded(kind, tmp_path, mode)
    assert flaw_of(str(path)) is None
    # the others say nothing there, so that they have to be decoded
    assert ends_as_images_do(str(path)) == (kind not in ('PPM', 'TIFF'))


@pytest.mark.parametrize('share', [0, .01, .1, .5, .9, .999])
@pytest.mark.parametrize('kind', FORMATS)
def test_files_that_were_cut(kind: str, share: float, tmp_path: Path) -> None:
    path = encoded(kind, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    assert not ends_as_images_do(str(path))
    said = 'is damaged, or no image' if share else r'is empty \(0 bytes\)'
    assert re.search(f'{path} {said}; write it again', flaw_of(str(path)))


@pytest.mark.parametrize('kind', FORMATS)
def test_what_is_written_behind_an_image(kind: str, tmp_path: Path) -> None:
    path = encoded(kind, tmp_path)
    path.write_bytes(path.read_bytes() + b'\0' * 9)
    assert not ends_as_images_do(str(path))
    assert flaw_of(str(path)) is None


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('more', [b'', b'\0', b'\xff', b'x'])
@pytest.mark.parametrize('lost', [1, 2, 8, 12, 40, 200])
def test_other_bytes_at_the_end(kind: str, more: bytes, lost: int,
                                tmp_path: Path) -> None:
    path = encoded(kind, tmp_path)
    path.write_bytes(path.read_bytes()[:-lost] + more * lost)
    assert not ends_as_images_do(str(path))
    assert 'is damaged' in flaw_of(str(path))


def test_a_preview_has_an_end_of_its_own(tmp_path: Path) -> None:
    path = encoded('JPEG', tmp_path)
    content = path.read_bytes()
    preview = b'\xff\xe1' + (len(content) + 2).to_bytes(2, 'big') + content
    whole = content[:2] + preview + content[2:]
    path.write_bytes(whole + b'more')
    assert flaw_of(str(path)) is None
    path.write_bytes(whole[:-20])
    assert 'is damaged' in flaw_of(str(path))


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('lost', [2, 12, 40])
def test_a_pipeline_names_what_was_cut(kind: str, lost: int,
                                       tmp_path: Path) -> None:
    path = encoded(kind, tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    init_default_scope('mmpretrain')
    with pytest.raises(UnreadableFileError, match=f'{path} is damaged'):
        Compose([dict(type='LoadImageFromFile')])(dict(img_path=str(path)))

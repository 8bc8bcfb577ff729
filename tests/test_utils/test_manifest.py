# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Images that networks made are compared with what their manifest names."""

import json
import os
import shutil
from pathlib import Path
from typing import Callable, Dict

import mmcv
import numpy as np
import pytest
from _guides import NUM, write_guides
from _upstream import release
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from _tiny import KINDS, SCOPES
from vim_mm.apis.release import re_represent_folder
from vim_mm.engine.runner import build_runner
from vim_mm.utils import manifest as manifests
from vim_mm.utils.cli import is_user_error
from vim_mm.utils.data import check_data
from vim_mm.utils.manifest import MANIFEST, manifest_of

PART = 'train_dataloader'


@pytest.fixture(scope='module')
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind guides, and re-represented copies of their images."""
    root = tmp_path_factory.mktemp('made')
    codes = release(root / 'release')
    for kind in KINDS:
        write_guides(kind, root / kind)
        re_represent_folder(codes, root / kind / 'images',
                            root / kind / 'copies')
    return root


@pytest.fixture
def copies(made: Path, tmp_path: Path) -> Callable[[str], Config]:
    """A config that reads copies of its own with the guides' annotations."""

    def make(kind: str) -> Config:
        root = tmp_path / kind
        dataset = write_guides(kind, root)
        shutil.copytree(made / kind / 'copies', root / 'copies')
        if kind == 'cls':
            dataset['data_prefix'] = 'copies'
        else:
            image = dict(det='img', seg='img_path')[kind]
            dataset['data_prefix'][image] = 'copies'
        return Config({
            'model': dict(type='never built'),
            PART: dict(dataset=dataset),
            'train_cfg': dict(by_epoch=True, max_epochs=1),
            'optim_wrapper': dict(optimizer=dict(type='SGD', lr=0.01)),
            'launcher': 'none',
            'default_scope': SCOPES[kind]
        })

    return make


def folder_of(cfg: Config) -> Path:
    return Path(cfg[PART].dataset.data_root) / 'copies'


def read(cfg: Config) -> None:
    check_data(cfg, (PART, ))


def run(cfg: Config) -> None:
    """As every run begins; it ends before it looks at the rest."""
    build_runner(cfg, (PART, ))


def soft(cfg: Config) -> None:
    """As a student reads them that learns by its teacher alone."""
    path = str(folder_of(cfg) / MANIFEST)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        DATASETS.build(
            dict(
                type='vim_mm.SoftOnly',
                manifest=path,
                dataset=cfg[PART].dataset))


# ------------------------------------------------------------ what is whole


@pytest.mark.parametrize('kind', KINDS)
def test_copies_are_read_with_the_annotations_of_the_originals(
        kind: str, copies: Callable) -> None:
    cfg = copies(kind)
    read(cfg)
    soft(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg[PART].dataset)
        assert len(dataset) == NUM
        for index in range(NUM):
            data = dataset[index]
            assert data['inputs'].shape[-2:] == (56, 56)
            assert Path(data['data_samples'].img_path).is_relative_to(
                folder_of(cfg))


def test_a_manifest_tells_what_the_copies_are(made: Path) -> None:
    content = json.loads((made / 'cls/copies' / MANIFEST).read_text())
    assert content['kind'] == 'copies'
    assert content['settings'].keys() == {'release', 'scale'}
    assert len(content['images']) == NUM
    for record in content['images'].values():
        assert (record['height'], record['width']) == (56, 56)


def test_what_is_whole_is_read_once(copies: Callable,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, calls, original = copies('cls'), [], manifests.sha256

    def count(source) -> str:
        calls.append(source)
        return original(source)

    monkeypatch.setattr(manifests, 'sha256', count)
    for _ in range(3):
        read(cfg)
    images = [each for each in calls if isinstance(each, Path)]
    assert len(images) == NUM


# -------------------------------------------------------- what is not whole


def an_image(folder: Path, index: int = 0) -> Path:
    return sorted(folder.rglob('*.png'))[index]


def flip(path: Path, place: int) -> Path:
    """Change a bit of a file."""
    changed = bytearray(path.read_bytes())
    changed[place % len(changed)] ^= 1 << place % 8
    path.write_bytes(changed)
    return path


def truncated(folder: Path) -> Path:
    path = an_image(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def emptied(folder: Path) -> Path:
    an_image(folder).write_bytes(b'')
    return an_image(folder)


def missing(folder: Path) -> Path:
    path = an_image(folder)
    path.unlink()
    return path


def a_folder(folder: Path) -> Path:
    path = missing(folder)
    path.mkdir()
    return path


def a_pipe(folder: Path) -> Path:
    path = missing(folder)
    os.mkfifo(path)
    return path


def endless(folder: Path) -> Path:
    path = an_image(folder)
    os.truncate(path, 1 << 40)
    return path


def of_other_pixels(folder: Path) -> Path:
    path = an_image(folder)
    mmcv.imwrite(np.full((56, 56, 3), 7, np.uint8), str(path))
    return path


def exchanged(folder: Path) -> Path:
    first, second = an_image(folder), an_image(folder, 1)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    return first


def renamed(folder: Path) -> Path:
    path = an_image(folder)
    path.rename(path.with_name('other.png'))
    return path


DAMAGED: Dict[str, Callable[[Path], Path]] = dict(
    flipped_early=lambda folder: flip(an_image(folder), 3),
    flipped_late=lambda folder: flip(an_image(folder), 500),
    flipped_manifest=lambda folder: flip(folder / MANIFEST, 40),
    flipped_note=lambda folder: flip(folder / MANIFEST, 120),
    cut_manifest=lambda folder: flip(folder / MANIFEST, 250),
    truncated=truncated,
    emptied=emptied,
    missing=missing,
    a_folder=a_folder,
    a_pipe=a_pipe,
    endless=endless,
    of_other_pixels=of_other_pixels,
    exchanged=exchanged,
    renamed=renamed)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('what', DAMAGED)
def test_a_changed_or_missing_file_is_named(what: str, kind: str,
                                            copies: Callable) -> None:
    cfg = copies(kind)
    read(cfg)
    path = DAMAGED[what](folder_of(cfg))
    for use in (read, run, soft):
        with pytest.raises(ValueError, match='is damaged') as caught:
            use(cfg)
        assert str(path) in str(caught.value)
        assert is_user_error(caught.value)
        if path.name != MANIFEST:
            assert 'tools/release.py apply' in str(caught.value)


def beside(folder: Path) -> Path:
    path = an_image(folder)
    other = path.with_name(f'another{path.suffix}')
    shutil.copyfile(path, other)
    return other


def below(folder: Path) -> Path:
    other = folder / 'deeper' / 'another.JPG'
    other.parent.mkdir()
    shutil.copyfile(an_image(folder), other)
    return other


def linked(folder: Path) -> Path:
    other = folder / 'zz.png'
    other.symlink_to(an_image(folder))
    return other


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('add', [beside, below, linked])
def test_a_foreign_image_is_named(add: Callable, kind: str,
                                  copies: Callable) -> None:
    cfg = copies(kind)
    path = add(folder_of(cfg))
    for use in (read, run, soft):
        with pytest.raises(ValueError, match='is none of the images') as error:
            use(cfg)
        assert str(path) in str(error.value)
    (folder_of(cfg) / 'notes.txt').write_text('no image')
    path.unlink()
    read(cfg)


@pytest.mark.parametrize('kind', KINDS)
def test_copies_of_what_is_not_whole_are_refused(kind: str, made: Path,
                                                 copies: Callable,
                                                 tmp_path: Path) -> None:
    folder = folder_of(copies(kind))
    path = flip(an_image(folder), 200)
    with pytest.raises(ValueError, match=f'{path}. is damaged'):
        re_represent_folder(made / 'release', folder, tmp_path / 'twice')
    assert not (tmp_path / 'twice').exists()


# ----------------------------------------------------- which manifest it is


def test_a_part_of_the_copies_and_a_link_to_them(copies: Callable,
                                                 tmp_path: Path) -> None:
    cfg = copies('cls')
    folder = folder_of(cfg)
    (tmp_path / 'link').symlink_to(folder / 'left')
    for place in (folder, folder / 'left', tmp_path / 'link'):
        assert manifest_of(place) == folder.resolve() / MANIFEST
    assert manifest_of(folder.parent / 'images') is None


@pytest.mark.parametrize('content', [
    b'', b'{}', b'{"name": "x"}', b'[1, 2]', b'{"file": "a"}\n{"file": "b"}',
    b'\x00\xff', b'{"images": {}, "kind": 3}'], ids=repr)
def test_those_of_other_programs_are_left_alone(content: bytes,
                                                copies: Callable) -> None:
    cfg = copies('cls')
    (folder_of(cfg) / MANIFEST).write_bytes(content)
    missing(folder_of(cfg))
    read(cfg)


def test_what_is_no_file_is_no_manifest(copies: Callable) -> None:
    cfg = copies('cls')
    path = folder_of(cfg) / MANIFEST
    path.unlink()
    os.mkfifo(path)
    read(cfg)
    path.unlink()
    path.mkdir()
    read(cfg)

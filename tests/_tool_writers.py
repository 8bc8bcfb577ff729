# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What tools write: configs of tasks, predictions, and converted releases."""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator
from unittest import mock

import cv2
import numpy as np
import torch
from _folder_writers import FIRST, SECOND, Version, Writer
from _own_data import write_data, write_trunk
from mmengine.config import Config

from _multitask import run_cfg
from vim_mm.apis.new_task import new_task, read_data
from vim_mm.apis.new_task.plan import Pace
from vim_mm.apis.results import ResultFolder
from vim_mm.apis.split import save_task
from vim_mm.models import build_model
from vim_mm.utils.checkpoint import load_from_local


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def own_task(root: Path) -> Writer:
    """The config of a task on one's own data, and the lists of its images."""
    write_data(root)
    write_trunk(root)
    with _in(root):
        data = read_data(folder='photos/train')
    assert len(data.files) == 2

    def write(folder: Path, version: int) -> None:
        # training for a moment takes seconds
        pace = Pace(1., 1., 'measured here')
        with mock.patch('vim_mm.apis.new_task.task.measure',
                        lambda cfg: pace), mock.patch(
                            'vim_mm.apis.new_task.task.read_config', str):
            new_task(
                data,
                str(root / 'my_trunk.py'),
                str(folder / 'task.py'),
                licence=f'of version {version}',
                overwrite=True)

    def read(folder: Path) -> Version:
        text = (folder / 'task.py').read_text()
        compile(text, 'task.py', 'exec')
        for name, content in data.files.items():
            assert (folder / 'task_lists' / name).read_text() == content
        return int(text.split('of version ')[1][0])

    return Writer(write, read)


def split_task(root: Path) -> Writer:
    """One task of several, as a config and a checkpoint of its own."""
    cfg = Config(run_cfg(root))
    torch.save(
        dict(meta={}, state_dict=build_model(cfg).state_dict()),
        root / 'x.pth')
    one = build_model(_task(cfg))

    def write(folder: Path, version: int) -> None:
        with mock.patch('vim_mm.apis.split.build_model', lambda cfg: one):
            save_task(cfg, str(root / 'x.pth'), 'cls', folder / 'x')

    def read(folder: Path) -> Version:
        if not (folder / 'x').exists():
            return None
        assert Config.fromfile(folder / 'x' / 'cls.py').model
        state = load_from_local(str(folder / 'x' / 'cls.pth'))['state_dict']
        assert state.keys() == one.state_dict().keys()
        return SECOND

    return Writer(write, read, None, repeats=False)


def _task(cfg: Config) -> Config:
    from vim_mm.models.multitask.single_task import LOAD_TASK, task_config
    cfg = task_config(cfg, 'cls')
    cfg.pop(LOAD_TASK)
    return cfg


def predictions(root: Path) -> Writer:
    """Drawings, answers, and a map of pixels beside one."""

    def write(folder: Path, version: int) -> None:
        results = ResultFolder(str(folder / 'x'))
        pixels = np.full((4, 5), version, np.uint8)
        results.save_drawing('a', '0', np.stack([pixels] * 3, -1))
        results.save_prediction('a', '0', dict(label=version))
        results.save_prediction('b', '0', dict(sem_seg=pixels, of=version))

    def read(folder: Path) -> int:
        versions = set()
        pictures = [path for path in (folder / 'x').rglob('*.png')
                    if not path.name.startswith('.')]
        for path in pictures:
            versions |= set(np.unique(cv2.imread(str(path))).tolist())
        for task, key in (('a', 'label'), ('b', 'of')):
            path = folder / 'x' / 'preds' / task / '0.json'
            versions.add(json.loads(path.read_text())[key])
        assert len(pictures) == 2 and versions <= {FIRST, SECOND}
        return min(versions)

    return Writer(write, read, many=True)


def vim_release(root: Path) -> Writer:
    """A trunk, a zoo, and a config and checkpoint for a task."""
    import sys
    tests = Path(__file__).resolve().parent
    sys.path.insert(0, str(tests / 'test_interchange'))
    import released
    sys.path.pop(0)

    from vim_mm.interchange import convert_release
    from vim_mm.zoo import Zoo

    # as one file: the files of its bases are read, not written
    cfg = Config.fromfile(tests.parent / 'configs/vim/release_cls.py')
    cfg.dump(root / 'release_cls.py')
    with mock.patch.multiple(released, DEPTH=1, MODULES=2):
        torch.save(released.make_release(), root / 'x.pt')

    def write(folder: Path, version: int) -> None:
        convert_release(
            root / 'x.pt',
            folder / 'x',
            dict(cls=root / 'release_cls.py'),
            tasks=['cls-birds'])

    def read(folder: Path) -> Version:
        if not (folder / 'x').exists():
            return None
        zoo, = (path.parent.parent
                for path in (folder / 'x').rglob('module-0/card.json'))
        assert Zoo(zoo).verify() == [] and len(Zoo(zoo).names()) == 2
        cfg = Config.fromfile(folder / 'x' / 'cls-birds.py')
        assert load_from_local(cfg.load_from)['state_dict']
        return SECOND

    return Writer(write, read, None, repeats=False)

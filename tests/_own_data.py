# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Data of one's own, of each kind, as docs/new_task.md names it."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Dict, List, Optional

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from _tiny import save_trunk
from vim_mm.utils.commands import run_command

REAL = Path(os.environ.get('VIM_MM_DATA',
                           Path(__file__).resolve().parents[1] / 'data'))
NUM, HEIGHT, WIDTH = 8, 48, 64
#: Loaders in this process, and logs of few lines.
HERE = [
    '--cfg-options', *(f'{loader}_dataloader.{setting}'
                       for loader in ('train', 'val', 'test')
                       for setting in ('num_workers=0',
                                       'persistent_workers=False')),
    'log_level=WARNING'
]


def run(line: str, more: List[str] = []) -> Optional[int]:
    """Run a command of ``vim-mm`` as a shell would, in this process."""
    program, name, *args = shlex.split(line)
    assert program == 'vim-mm'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', sys.argv)  # the tool changes it
        # seconds each, to report compilers and to lay out configs as text
        patch.setattr(Runner, '_log_env', lambda self, env: None)
        patch.setattr(Config, 'pretty_text', '')
        return run_command(name, [*args, *more])


def write_trunk(folder: Path) -> None:
    """A tiny ViT with weights, and the config ``my_trunk.py``."""
    trunk = save_trunk(folder / 'trunk.pth')
    (folder / 'my_trunk.py').write_text(
        f'trunk = {trunk!r}\n'
        'trunk_normalization = dict(mean=[60.] * 3, std=[60.] * 3)\n')


def write_data(folder: Path, num: int = NUM) -> None:
    """Boxes in ``cells``, classes in ``photos``, label maps in ``street``."""
    for index in range(num):
        label = index % 2
        image = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        image[4:20, 6 + index:30 + index, 2 - 2 * label] = 250
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        labels[4:20, 6 + index:30 + index] = label
        split = 'train' if index < num // 2 else 'val'
        class_folder = ('red', 'blue')[label]
        for path, array in ((f'cells/images/{index}.png', image),
                            (f'photos/{split}/{class_folder}/{index}.png',
                             image), (f'street/img/{index}.png', image),
                            (f'street/maps/{index}_mask.png', labels)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / path)
    (folder / 'street/classes.txt').write_text('road\ncar\n')
    half = num // 2
    for name, part in (('train', range(half)), ('val', range(half, num))):
        (folder / f'cells/{name}.json').write_text(json.dumps(boxes(part)))


def boxes(indices: range) -> Dict[str, list]:
    """A json with a box in each image."""
    images = [
        dict(id=i, file_name=f'{i}.png', width=WIDTH, height=HEIGHT)
        for i in indices
    ]
    annotations = [
        dict(
            id=i + 1,
            image_id=i,
            category_id=3 + i % 2,
            bbox=[6 + i, 4, 24, 16],
            area=24 * 16,
            iscrowd=0) for i in indices
    ]
    # exports of some tools begin with a category that nothing has
    categories = [dict(id=1, name='cells')]
    categories += [dict(id=3, name='red'), dict(id=4, name='white')]
    return dict(
        images=images, annotations=annotations, categories=categories)


def real(name: str) -> Path:
    """A real data set, or the test is skipped."""
    if not (REAL / name).is_dir():
        pytest.skip(f'{name} is not in {REAL}: set VIM_MM_DATA')
    return REAL / name


def copy_some(source: Path, target: Path, names: List[str]) -> None:
    """Copy a few files of a real data set."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(source / name, target / name)

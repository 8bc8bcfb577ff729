# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of a run of which a bit has changed, given to the tools."""

import random
import runpy
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Callable, Dict, Iterator, Tuple
from unittest import mock

from test_wrong_uses import config, write

from _distill import KL, distiller_cfg

ROOT = Path(__file__).resolve().parents[1]


@cache
def _main(name: str) -> Callable[[], None]:
    return runpy.run_path(str(ROOT / 'tools' / f'{name}.py'))['main']


def tool(name: str, *args: object) -> None:
    """Run a tool in this process; it may raise."""
    with mock.patch('sys.argv', [name, *map(str, args)]):
        _main(name)()


def trained(folder: Path) -> None:
    """Distil for two steps, by the tool, into ``run/`` and its student."""
    write(folder)
    cfg = config('cls', folder)
    data = cfg.train_dataloader.to_dict()
    cfg.merge_from_dict(
        dict(
            model=dict(
                _delete_=True,
                **distiller_cfg(folder, 'cls', {
                    ('logits', 'logits'): KL
                }).to_dict()),
            train_cfg=dict(max_iters=2),
            test_dataloader=dict(
                data, sampler=dict(type='DefaultSampler', shuffle=False)),
            test_evaluator=dict(type='Accuracy', topk=1),
            test_cfg={},
            default_hooks=dict(checkpoint=dict(
                type='CheckpointHook', by_epoch=False, interval=1)),
            experiment_name='toy'))
    cfg.dump(folder / 'toy.py')
    tool('train', folder / 'toy.py')


def uses(folder: Path) -> Dict[str, Tuple[Path, tuple]]:
    """What reads a checkpoint of that run: the file, a tool and arguments."""
    toy, work = folder / 'toy.py', folder / 'run'
    last, student = work / 'iter_2.pth', work / 'student' / 'student.pth'
    more = ('--cfg-options', 'train_cfg.max_iters=3')
    return {
        'test': (last, ('test', toy, last)),
        'resume': (last, ('train', toy, '--resume', last, *more)),
        'start': (student, ('train', toy, '--work-dir', folder / 'other',
                            '--cfg-options', f'load_from={student}')),
        'test of the student':
        (student, ('test', student.with_suffix('.py'), student, '--work-dir',
                   folder / 'other')),
    }


@contextmanager
def flipped(path: Path, rng: random.Random) -> Iterator[int]:
    """Within this context one bit of a file is another one."""
    content = path.read_bytes()
    changed, place = bytearray(content), rng.randrange(len(content))
    changed[place] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
        yield place
    finally:
        path.write_bytes(content)

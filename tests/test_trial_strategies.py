# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A validation is tried before training under strategies, too."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from _processes import join, together
from mmengine.runner import FlexibleRunner
from test_late_wrong_uses import SHORT, Notes, run, waits
from test_wrong_uses import LOADED
from torch import Tensor

from _loading import LOAD
from _tiny import KINDS, first_of
from vim_mm.registry import MODELS
from vim_mm.utils.cli import is_user_error

SINGLE = dict(type='SingleDeviceStrategy')
FSDP = dict(type='vim_mm.FSDPStrategy', state_dict_cfg='full')
#: By kind, a validation that would fail, and words of the sentence.
ROWS = [
    ('cls', {'val': {'val_evaluator': dict(type='mmseg.IoUMetric')}},
     "would fail .*KeyError, 'pred_sem_seg'"),
    ('cls', {'val': None, **waits(save_best='accuracy/top5')},
     "save_best waits for the metric 'accuracy/top5'"),
    ('seg', {'val': None, SHORT: [LOAD, dict(type='PackSegInputs')]},
     "would fail .*'gt_sem_seg'"),
    ('det', {'val': None, SHORT: [LOAD, *LOADED['det']]},
     'would fail .*scale_factor'),
    ('cls', {'model.head.in_channels': 7}, 'reads 7 channels'),
    # where whole models are built, so before any process holds a part
    ('seg', {'model.decode_head.in_channels': 7}, '^FCNHead reads 7 channels'),
    ('cls', {'model.neck.in_channels': [7, 7, 7]},
     '^The neck ViMFusionNeck does not take'),
    ('cls', {'model.neck': None},
     r'fails in `model\.head\.fc` \(Linear\) before a step is done'),
]


def flexible(kind: str, change: dict, folder: Path, **more: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('test_wrong_uses.Runner', FlexibleRunner)
        return run(kind, {'env_cfg': {}, **change, **more}, folder)


@pytest.mark.parametrize(('kind', 'change', 'words'), [
    *ROWS[:2],
    *(pytest.param(*row, marks=pytest.mark.slow) for row in ROWS[2:])
])
def test_it_is_told(kind: str, change: dict, words: str,
                    tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        flexible(kind, change, tmp_path, strategy=SINGLE)
    assert is_user_error(caught.value)
    assert not list(tmp_path.glob('run/*.pth'))


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_a_validation_that_works(kind: str, tmp_path: Path) -> None:
    notes = Notes()
    runner = flexible(kind, {'val': None, 'then': lambda run:
                             run.register_hook(notes)}, tmp_path,
                      strategy=SINGLE)
    assert runner.iter == 3 and notes.training and notes.results == [[]]


def shapes(state: Dict[str, Tensor]) -> Dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def worker(rank: int, port: int, folder: str) -> None:
    import vim_mm  # noqa: F401, prepares the stack
    from vim_mm.utils.dist import leave_group
    cfg = join(rank, port)
    own = dict(strategy=FSDP, launcher='pytorch', env_cfg=cfg.env_cfg)
    for index, (kind, change, words) in enumerate(
            [*ROWS[:3], *ROWS[4:]]):
        with pytest.raises(ValueError, match=words):
            flexible(kind, change, Path(folder, f'{index}_{rank}'), **own)
    done = flexible('seg', {'val': None}, Path(folder, f'done_{rank}'), **own)
    assert done.iter == 3
    if rank == 0:  # which saves: as without a strategy, trunk left out
        path, = Path(folder, 'done_0').glob('run/*.pth')
        saved = torch.load(path, weights_only=False)['state_dict']
        assert shapes(saved) == shapes(MODELS.build(done.cfg.model)
                                       .state_dict())
    leave_group()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Each looks at the same two images, so that all stop together."""
    together(worker, str(tmp_path))

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which checkpoint a run goes on from, and what it takes from its notes."""

import os
import os.path as osp
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any, Dict, Iterator, List, Optional, Tuple

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader, FlexibleRunner, Runner

from vim_mm.utils.checkpoint import CheckpointError
from .run_state import COUNTERS, check_counters, counts
from .saving import (BATCHES, POINTER, SAMPLER_SEED, STOPPED_AT, VALIDATE,
                     checkpoint_hooks)

_COUNTS = (*COUNTERS, 'max_epochs', 'max_iters', VALIDATE, BATCHES, STOPPED_AT,
           SAMPLER_SEED)

# ------------------------------------------------------------------- notes


def keep_numbers(checkpoint: dict, runner: Runner) -> None:
    """Reduce a checkpoint's notes, in place, to what a run goes on from.

    These are the counters and the seed, the numbers and loss curves of the
    message hub, and the data set's classes, to compare them. All other text
    goes: some of it mmengine would run as a config, or take for the paths of
    files to remove.
    """
    meta = _mapping(checkpoint, 'meta')
    kept = {
        key: meta[key]
        for key in (*COUNTERS, 'seed') if counts(meta.get(key))
    }
    if isinstance(meta.get('dataset_meta'), Mapping):
        kept['dataset_meta'] = meta['dataset_meta']
    hub = _mapping(checkpoint, 'message_hub')
    scalars, infos, resumed = ({
        key: value
        for key, value in _mapping(hub, part).items()
        if _is_name(key) and keeps(key, value)
    } for part, keeps in (
        ('log_scalars', lambda _, value: _is_curve(value)),
        ('runtime_info', _is_of_its_kind),
        ('resumed_keys', lambda _, value: isinstance(value, bool)),
    ))
    scalars = {key: HistoryBuffer(*each.data) for key, each in scalars.items()}
    infos.update(_best(runner, _mapping(hub, 'runtime_info')))
    known = scalars.keys() | infos.keys()
    checkpoint['meta'] = kept
    checkpoint['message_hub'] = dict(
        log_scalars=scalars,
        runtime_info=infos,
        resumed_keys={k: v for k, v in resumed.items() if k in known})


def _mapping(holder: Mapping, key: str) -> Mapping:
    value = holder.get(key)
    return value if isinstance(value, Mapping) else {}


def _is_name(key: Any) -> bool:
    """Whether a log may show it."""
    return isinstance(key, str) and key.isprintable()


def _is_curve(value: Any) -> bool:
    """Whether it is a buffer with as many numbers as counts of them."""
    parts = [vars(value).get(f'_{name}_history') for name in ('log', 'count')
             ] if type(value) is HistoryBuffer else [None]
    return all(
        isinstance(part, np.ndarray) and part.ndim == 1
        and part.dtype.kind in 'biuf' and len(part) == len(parts[0])
        for part in parts)


def _is_of_its_kind(key: str, value: Any) -> bool:
    """Whether a note of the message hub is what a run makes of it."""
    if key in _COUNTS:
        return counts(value)
    if key == 'keep_ckpt_ids':
        return isinstance(value, list) and all(map(counts, value))
    if key.startswith('best_score'):
        return isinstance(value, (Number, np.generic))
    return _is_numeric(value)


def _is_numeric(value: Any) -> bool:
    """Whether a value is a number, None, or holds nothing else."""
    if isinstance(value, Mapping):
        return all(map(_is_numeric, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_numeric, value))
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in 'biufc'
    return value is None or isinstance(value, (Number, torch.Tensor))


def _best(runner: Runner, infos: Mapping) -> Dict[str, str]:
    """The best checkpoints so far, which the run removes for better ones.

    Names from a file only choose among the files in the run's own folders.
    """
    names = {
        key: osp.basename(value)
        for key, value in infos.items()
        if isinstance(key, str) and key.startswith('best_ckpt')
        and isinstance(value, str)
    }
    present = {osp.basename(path): path for path in _best_files(runner)}
    return {
        key: present[name]
        for key, name in names.items() if name in present
    }


# ------------------------------------------------------------------ choice


@dataclass
class _Saved:
    """A checkpoint in a run's folder.

    Attributes:
        path (str): Where it is.
        kind (int): Which of the templates of names it follows.
        step (int): The epoch or iteration in its name.
        time (float): When it was written.
    """
    path: str
    kind: int = -1
    step: int = -1

    def __post_init__(self) -> None:
        self.time = osp.getmtime(self.path)


def choose_checkpoint(runner: Runner) -> None:
    """Let an automatic resume take the newest checkpoint that loads.

    mmengine takes what the file ``last_checkpoint`` names, and starts anew
    where there is none. The first process chooses for all. With
    ``resume='auto'``, as of ``--resume``, a run without checkpoints starts
    from its ``load_from``; with ``resume=True`` that is what it resumes.

    Raises:
        CheckpointError: If there are checkpoints and none loads.
    """
    is_auto = runner._resume == 'auto' or (runner._resume is True
                                           and runner._load_from is None)
    if runner._has_loaded or not is_auto:
        return
    chosen: List[Any] = [None, None]
    if is_main_process():
        chosen = list(_choose(runner))
    broadcast_object_list(chosen)
    path, said = chosen
    if path == '':
        raise CheckpointError(said)
    print_log(said, logger='current')
    runner._load_from = path or runner._load_from
    runner._resume = path is not None


def _choose(runner: Runner) -> Tuple[Optional[str], str]:
    """A path and what is to be said; '' if no checkpoint loads."""
    takes_folders = isinstance(runner, FlexibleRunner)
    named, reasons = _read_pointer(runner.work_dir, takes_folders)
    if named is not None and '://' in named:
        return named, f'Resuming from {named}.'
    ordered = _ordered(runner, named)
    if not ordered:
        start = runner._load_from or 'the beginning'
        return None, (f'There is no checkpoint in {runner.work_dir} to resume '
                      f'from: training starts from {start}.')
    for path in ordered:
        # a folder is a strategy's own, which alone can read it
        is_folder = takes_folders and osp.isdir(path)
        if is_folder and named in ordered[ordered.index(path) + 1:]:
            reasons.append(f'{path} may be cut short, as the run has not come '
                           'to name it.')
            continue
        try:
            if not is_folder:
                check_counters(
                    CheckpointLoader.load_checkpoint(path, 'cpu', 'silent'),
                    path)
        except (CheckpointError, OSError) as error:
            reasons.append(str(error))
            continue
        if path != named and not reasons:
            reasons = [f'it is newer than {named}']
        why = f' ({" ".join(reasons)})' if reasons else ''
        return path, f'Resuming from {path}{why}.'
    return '', (f'None of the {len(ordered)} checkpoints of {runner.work_dir} '
                f'loads, so the run cannot be resumed: {" ".join(reasons)} '
                'Move them away to start anew.')


def _read_pointer(work_dir: str,
                  takes_folders: bool) -> Tuple[Optional[str], List[str]]:
    """What ``last_checkpoint`` names, and what is wrong with it."""
    pointer = osp.join(work_dir, POINTER)
    if not osp.isfile(pointer):
        return None, [f'There is no {POINTER}.']
    with open(pointer, encoding='utf-8', errors='replace') as file:
        path = file.readline().strip()
    if not path:
        return None, [f'{POINTER} is empty.']
    # a work dir may have moved, or be a copy
    here = osp.join(work_dir, osp.basename(path))
    for place in (here, path):
        is_folder = takes_folders and osp.basename(path) and osp.isdir(place)
        if '://' in place or osp.isfile(place) or is_folder:
            return place, []
    what = 'no checkpoint file' if osp.exists(path) else 'not there'
    return None, [f'{POINTER} names {path}, which is {what}.']


def _ordered(runner: Runner, named: Optional[str]) -> List[str]:
    """All checkpoints of a run, the one to try first in front.

    That is the one named, unless the run wrote one more and did not come to
    name it. Files that count further but are older are another run's. The
    best so far come last: they hold no optimizer.
    """
    found = list(_saved(runner))
    last = [each for each in found if each.path == named]
    if named is not None and not last:
        last = [_Saved(named)]
        found += last

    newest: Dict[int, float] = {}
    for each in found:
        newest[each.kind] = max(newest.get(each.kind, 0.), each.time)

    def rank(each: _Saved) -> tuple:
        group = 1
        if last and each is not last[0]:
            ahead = each.kind != last[0].kind or each.step > last[0].step
            newer = each.time > last[0].time
            group = 3 if ahead and not newer else 0 if ahead else 2
        return group, -newest[each.kind], each.kind, -each.step

    ordered = [each.path for each in sorted(found, key=rank)]
    best = sorted(_best_files(runner), key=osp.getmtime, reverse=True)
    return list(dict.fromkeys(ordered + best))


def _saved(runner: Runner) -> Iterator[_Saved]:
    """The files that the run's checkpoint hooks have written."""
    names = [hook.filename_tmpl for hook in checkpoint_hooks(runner)]
    patterns = [
        re.sub(r'\\\{.*?\\\}', r'(\\d+)', re.escape(name))
        for name in (*names, 'epoch_{}.pth', 'iter_{}.pth')
    ]
    for folder in _folders(runner):
        for name in os.listdir(folder):
            for kind, pattern in enumerate(patterns):
                match = re.fullmatch(pattern, name)
                if match:
                    yield _Saved(
                        osp.join(folder, name), kind, int(match[1]))
                    break


def _best_files(runner: Runner) -> List[str]:
    return [
        osp.join(folder, name) for folder in _folders(runner)
        for name in os.listdir(folder)
        if name.startswith('best_') and name.endswith('.pth')
    ]


def _folders(runner: Runner) -> List[str]:
    """Where the run's checkpoints are, as its checkpoint hooks see it."""
    folders = [runner.work_dir]
    for hook in checkpoint_hooks(runner):
        if hook.out_dir is not None:
            name = osp.basename(runner.work_dir.rstrip(osp.sep))
            folders.append(osp.join(hook.out_dir, name))
    return [folder for folder in dict.fromkeys(folders) if osp.isdir(folder)]

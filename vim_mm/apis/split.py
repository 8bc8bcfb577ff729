# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""One task of a multi-task run as a config and a checkpoint of its own."""

import os
from pathlib import Path
from typing import Tuple, Union

from mmengine.config import Config
from mmengine.runner import CheckpointLoader

from vim_mm.models import build_model
from vim_mm.models.fit import check_fit
from vim_mm.models.function_notes import KEY as FUNCTION
from vim_mm.models.head_origin import KEY
from vim_mm.models.multitask.single_task import (LOAD_TASK, task_checkpoint,
                                                 task_config)
from vim_mm.utils.checkpoint_form import check_whole, state_of
from vim_mm.utils.checksum import save_checkpoint
from vim_mm.utils.config import read_config
from vim_mm.utils.files import new_folder


def save_task(config: Union[str, Config], checkpoint: str, task: str,
              folder: Union[str, os.PathLike]) -> Tuple[Path, Path]:
    """Write an ordinary config and checkpoint of one task.

    They are trained, tested and served like any others of the task's library.

    Args:
        config (str | Config): The config of several tasks.
        checkpoint (str): What its training left.
        task (str): Name of the task.
        folder (str): The folder to make, for ``TASK.py`` and ``TASK.pth``.

    Returns:
        tuple[Path, Path]: The config and the checkpoint.

    Raises:
        FileExistsError: If the folder holds something already.
        FileNotFoundError: If a file does not exist.
        ValueError: If there is no such task, or the checkpoint is of another
            model; nothing is written then.
    """
    cfg = task_config(read_config(config), task)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', 'silent')
    file = f"The checkpoint '{checkpoint}'"
    check_whole(loaded, file)
    if not task_checkpoint(loaded, task, file):
        raise ValueError(f'{file} is not of a model of several tasks, so '
                         'there is nothing to take out of it.')
    state = state_of(loaded, file)
    check_fit(build_model(cfg), state, file, every_task=True, whole=True)
    meta = loaded.get('meta') or {}
    kept = dict(
        dataset_meta=meta.get('dataset_meta') or {},
        **{key: meta.get(key)
           for key in (KEY, FUNCTION)})
    cfg.pop(LOAD_TASK)
    folder = Path(folder)
    with new_folder(folder, FileExistsError) as draft:
        cfg.dump(draft / f'{task}.py')
        save_checkpoint(
            dict(meta=kept, state_dict=state), draft / f'{task}.pth')
    return folder / f'{task}.py', folder / f'{task}.pth'

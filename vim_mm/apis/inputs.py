# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What an inferencer is asked: paths, folders, arrays and lists of them."""

import os
import os.path as osp
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.config import Config
from torchvision.datasets.folder import IMG_EXTENSIONS

from vim_mm.models.multitask.single_task import config_tasks
from vim_mm.utils.config import read_config

Picture = Union[str, np.ndarray]
Inputs = Union[Picture, os.PathLike, Sequence[Union[Picture, os.PathLike]]]


@dataclass
class Request:
    """One image to answer.

    Attributes:
        index (int): Its place in the results.
        task (str): The task that answers it.
        picture (str | np.ndarray): A path, a URL or an array.
        name (str): Name of its files, without suffix.
        data (dict, optional): What the model takes, once it is read.
        loaded (np.ndarray, optional): The image as read, BGR.
    """
    index: int
    task: str
    picture: Picture
    name: str
    data: Optional[dict] = None
    loaded: Optional[np.ndarray] = None

    @property
    def path(self) -> Optional[str]:
        """Where the image is from, None for an array."""
        return self.picture if isinstance(self.picture, str) else None


def list_requests(inputs: Inputs, task: Union[str, Sequence[str], None],
                  served: List[str], counted: int) -> List[Request]:
    """What an inferencer is asked, image by image.

    Args:
        inputs: Paths, folders, URLs, arrays, or a list of these.
        task (str | Sequence[str], optional): The task, or one for every entry
            of ``inputs``; may be None if one task is served.
        served (list[str]): The tasks there are.
        counted (int): Number of arrays that have names from earlier calls.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no image, or a task is not served.
    """
    groups = [list_pictures(one) for one in as_list(inputs)]
    if task is None:
        if len(served) != 1:
            raise ValueError(
                f'Say which `task` is to answer; served are {served}.')
        task = served[0]
    given = [task] * len(groups) if isinstance(task, str) else list(task)
    if len(given) != len(groups):
        raise ValueError(f'There are {len(given)} tasks for {len(groups)} '
                         'inputs; give one for each, or one for all.')
    for name in given:
        if name not in served:
            raise ValueError(f"There is no task '{name}'; served are "
                             f'{served}.')
    pictures = [picture for group in groups for picture in group]
    check_files(pictures)
    tasks = [name for name, group in zip(given, groups) for _ in group]
    names = file_names(pictures, tasks, counted)
    return [
        Request(index, *one)
        for index, one in enumerate(zip(tasks, pictures, names))
    ]


def as_list(inputs: Inputs) -> list:
    """The entries of an inferencer's inputs.

    Raises:
        ValueError: If there is none.
    """
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not inputs:
        raise ValueError('There is no image: `inputs` is empty.')
    return inputs


def list_pictures(entry: Union[Picture, os.PathLike]) -> List[Picture]:
    """The images one entry stands for; those of a folder in name order.

    Raises:
        ValueError: If a folder holds none, or an array is no image.
    """
    if isinstance(entry, (str, os.PathLike)):
        entry = os.fspath(entry)
        if not osp.isdir(entry):
            return [entry]
        found = [
            name for name in sorted(os.listdir(entry))
            if name.lower().endswith(IMG_EXTENSIONS) and name[0] != '.'
        ]
        if not found:
            raise ValueError(f'The folder {entry} holds no image '
                             f'({", ".join(IMG_EXTENSIONS)}).')
        return [osp.join(entry, name) for name in found]
    if not (isinstance(entry, np.ndarray) and entry.dtype == np.uint8
            and entry.ndim == 3 and entry.shape[2] == 3 and entry.size):
        form = getattr(entry, 'shape', '')
        raise ValueError(
            f'An input is a {type(entry).__name__} {form}; give paths, '
            'folders, or arrays of shape (H, W, 3), uint8 and BGR.')
    return [entry]


def tasks_of(config: Union[str, os.PathLike, Config],
             checkpoint: Optional[str],
             task: Optional[str] = None) -> Dict[str, tuple]:
    """What a config and a checkpoint serve, by name.

    Args:
        config (str | Config): The config. A single task goes by the name of
            its file, those of a multi-task model by their own.
        checkpoint (str): What its training left.
        task (str, optional): The task of the model, or of its fusion, that is
            meant; all of a multi-task model when None.

    Raises:
        ValueError: If there is no checkpoint.
    """
    path = getattr(config, 'filename', None) if isinstance(
        config, Config) else os.fspath(config)
    if checkpoint is None:
        raise ValueError(f"The task of {path or 'a config'} needs what its "
                         'training left; give its checkpoint.')
    config = read_config(config if isinstance(config, Config) else path)
    several = config_tasks(config)
    if several:
        return {
            name: (config, checkpoint, name)
            for name in ([task] if task else several)
        }
    name = re.sub(r'[^\w.-]', '_', Path(path or 'task').stem).lstrip('.-')
    return {name or 'task': (config, checkpoint, task)}


def check_files(pictures: Sequence[Picture]) -> None:
    """Say at once which files are missing; a URL is left to its reader.

    Raises:
        FileNotFoundError: If a path does not exist.
    """
    missing = [
        picture for picture in pictures if isinstance(picture, str)
        and '://' not in picture and not osp.isfile(picture)
    ]
    if missing:
        raise FileNotFoundError(f'There is no image {missing[0]}'
                                f'{and_more(missing)}: check the path.')


def check_device(device: str) -> None:
    """Refuse a device that is not there, before models are built.

    Raises:
        ValueError: If nothing can be put there.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"The device '{device}' cannot be used: "
                         f'{str(error).splitlines()[0]}') from error


def make_folder(path: str) -> None:
    """Make a folder for results, if there is none.

    Raises:
        ValueError: If it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ValueError('Results cannot be written: '
                         f'{error}; give another `out_dir`.') from error


def file_names(pictures: Sequence[Union[str, np.ndarray]], tasks: List[str],
               counted: int) -> List[str]:
    """A file name, without suffix, for every image's results.

    Images of one stem in one task get a number; arrays are numbered.

    Args:
        pictures (Sequence[str | np.ndarray]): Paths or arrays.
        tasks (list[str]): The task of each.
        counted (int): Number of arrays that have names from earlier calls.
    """
    last: Dict[Tuple[str, str], int] = {}  # number given to a name so far
    names = []
    for picture, task in zip(pictures, tasks):
        if isinstance(picture, str):
            stem = Path(picture).stem
        else:
            stem, counted = f'array_{counted:08d}', counted + 1
        name = stem
        while (task, name) in last:
            last[task, stem] += 1
            name = f'{stem}_{last[task, stem]}'
        last[task, name] = 1
        names.append(name)
    return names


def and_more(items: list) -> str:
    """How many more than the first there are, for a sentence."""
    return f' (and {len(items) - 1} more)' if len(items) > 1 else ''

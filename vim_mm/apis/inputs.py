# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What an inferencer is asked: paths, folders, arrays and lists of them."""

import os
import os.path as osp
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from mmengine.config import Config
from torchvision.datasets.folder import IMG_EXTENSIONS

from vim_mm.models.multitask.single_task import config_tasks
from vim_mm.utils.config import read_config

Picture = Union[str, np.ndarray]
Entry = Union[Picture, os.PathLike]
Tasks = Union[str, Sequence[str]]
Inputs = Union[Entry, Sequence[Union[Entry, Tuple[Entry, Tasks]]]]


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


def list_requests(inputs: Inputs, task: Optional[Tasks], served: List[str],
                  numbers: Iterator[int]) -> List[Request]:
    """What an inferencer is asked, image by image, each by all its tasks.

    Args:
        inputs: Paths, folders, URLs, arrays, or a list of these; an entry of
            a list may be a pair with tasks of its own.
        task (str | Sequence[str], optional): The tasks of all others; may be
            None if one task is served.
        served (list[str]): The tasks there are.
        numbers (Iterator[int]): Gives the number of each array.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no image, or a task is not served.
    """
    asked = []
    for entry in as_list(inputs):
        own = task
        if isinstance(entry, tuple):
            entry, own = _pair(entry)
        tasks = list_tasks(own, served)
        asked += [(picture, tasks) for picture in list_pictures(entry)]
    pictures = [picture for picture, _ in asked]
    check_files(pictures)
    stems = [
        Path(picture).stem if isinstance(picture, str) else
        f'array_{next(numbers):08d}' for picture in pictures
    ]
    each = [(name, picture, stem)
            for (picture, tasks), stem in zip(asked, stems) for name in tasks]
    names = file_names([(name, stem) for name, _, stem in each])
    return [
        Request(index, name, picture, file)
        for index, ((name, picture, _), file) in enumerate(zip(each, names))
    ]


def list_tasks(task: Optional[Tasks], served: List[str]) -> List[str]:
    """The tasks that are to answer.

    Raises:
        ValueError: If none is given and several are served, or one is not.
    """
    if task is None:
        if len(served) != 1:
            raise ValueError(
                f'Say which `task` is to answer; served are {served}.')
        return list(served)
    tasks = [task] if isinstance(task, str) else list(dict.fromkeys(task))
    for name in tasks:
        if name not in served:
            raise ValueError(f"There is no task '{name}'; served are "
                             f'{served}.')
    if not tasks:
        raise ValueError(f'`task` is empty; served are {served}.')
    return tasks


def _pair(entry: tuple) -> Tuple[Entry, Tasks]:
    """An entry with its own tasks.

    Raises:
        ValueError: If it is something else.
    """
    if len(entry) != 2 or not isinstance(entry[1], (str, list, tuple)):
        raise ValueError('An input is a tuple; give an image, or a pair of an '
                         "image and its tasks, ('a.jpg', 'digits').")
    return entry


def as_list(inputs: Inputs) -> list:
    """The entries of an inferencer's inputs.

    Raises:
        ValueError: If there is none.
    """
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not inputs:
        raise ValueError('There is no image: `inputs` is empty.')
    return inputs


def list_pictures(entry: Entry) -> List[Picture]:
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


def file_names(wanted: Sequence[Tuple[str, str]]) -> List[str]:
    """A file name, without suffix, for every answer.

    Images of one stem in one task get a number.

    Args:
        wanted (Sequence[tuple[str, str]]): The task and the stem of each.
    """
    last: Dict[Tuple[str, str], int] = {}  # number given to a name so far
    names = []
    for task, stem in wanted:
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

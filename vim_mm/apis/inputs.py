# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What an inferencer is asked: paths, folders, arrays and lists of them."""

import os
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Union

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

Picture = Union[str, np.ndarray]
Inputs = Union[Picture, os.PathLike, Sequence[Union[Picture, os.PathLike]]]


@dataclass
class Request:
    """One picture to answer.

    Attributes:
        index (int): Its place in the results.
        task (str): The task that answers it.
        picture (str | np.ndarray): A path, a URL or an array.
        name (str): Name of its files, without suffix.
        data (dict, optional): What the model takes, once it is read.
        loaded (np.ndarray, optional): The picture as read, BGR.
    """
    index: int
    task: str
    picture: Picture
    name: str
    data: Optional[dict] = None
    loaded: Optional[np.ndarray] = None

    @property
    def path(self) -> Optional[str]:
        """Where the picture is from, None for an array."""
        return self.picture if isinstance(self.picture, str) else None


def as_list(inputs: Inputs) -> list:
    """The entries of an inferencer's inputs.

    Raises:
        ValueError: If there is none.
    """
    inputs = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
    if not inputs:
        raise ValueError('There is no picture: `inputs` is empty.')
    return inputs


def list_pictures(entry: Union[Picture, os.PathLike]) -> List[Picture]:
    """The pictures one entry stands for; those of a folder in name order.

    Raises:
        ValueError: If a folder holds none, or an array is no picture.
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
            raise ValueError(f'The folder {entry} holds no picture '
                             f'({", ".join(IMG_EXTENSIONS)}).')
        return [osp.join(entry, name) for name in found]
    if not (isinstance(entry, np.ndarray) and entry.dtype == np.uint8
            and entry.ndim == 3 and entry.shape[2] == 3 and entry.size):
        form = getattr(entry, 'shape', '')
        raise ValueError(
            f'An input is a {type(entry).__name__} {form}; give paths, '
            'folders, or arrays of shape (H, W, 3), uint8 and BGR.')
    return [entry]


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
        raise FileNotFoundError(f'There is no picture {missing[0]}'
                                f'{and_more(missing)}: check the path.')


def file_names(pictures: Sequence[Union[str, np.ndarray]], tasks: List[str],
               counted: int) -> List[str]:
    """A file name, without suffix, for every picture's results.

    Pictures of one stem in one task get a number; arrays are numbered.

    Args:
        pictures (Sequence[str | np.ndarray]): Paths or arrays.
        tasks (list[str]): The task of each.
        counted (int): Number of arrays that have names from earlier calls.
    """
    taken, names = set(), []
    for picture, task in zip(pictures, tasks):
        if isinstance(picture, str):
            stem = Path(picture).stem
        else:
            stem, counted = f'array_{counted:08d}', counted + 1
        name, number = stem, 1
        while (task, name) in taken:
            number += 1
            name = f'{stem}_{number}'
        taken.add((task, name))
        names.append(name)
    return names


def and_more(items: list) -> str:
    """How many more than the first there are, for a sentence."""
    return f' (and {len(items) - 1} more)' if len(items) > 1 else ''

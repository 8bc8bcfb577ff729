# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a release is looked at for before its training."""

import os
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterator, Mapping, Set, Union

from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch.utils.data import Dataset

from vim_mm.engine.data_sets import parts_of
from vim_mm.models.generators import VQAutoEncoder
from vim_mm.models.pixels import check_form
from vim_mm.utils.files import sha256
from vim_mm.utils.messages import short


def check_can_judge(cfg: Config, folder: Union[str, Path], max_images: int,
                    trains: bool) -> None:
    """Refuse what would make a release of nothing, or none after hours.

    Args:
        cfg (Config): See :func:`publish_upstream`.
        folder (str | Path): Folder to make.
        max_images (int): Images of either kind in the report.
        trains (bool): Whether the config's training comes first.

    Raises:
        ValueError: If there are no two images to compare, no step to learn
            in, or the folder is the one that the training writes into.
    """
    if max_images < 2:
        raise ValueError(f'A leak report of {max_images} images compares '
                         'nothing; give --max-images 2 or more.')
    loop = cfg.get('train_cfg') or {}
    if trains and not (loop.get('max_iters') or loop.get('max_epochs')):
        raise ValueError('`train_cfg` has no step, so the release would be '
                         'untrained; set its `max_iters`, or name what a '
                         'training left (--checkpoint).')
    if cfg.get('work_dir') and Path(cfg.work_dir).resolve() == Path(
            folder).resolve():
        raise ValueError(f"'{folder}' is the folder of the training, too; "
                         'give --out or --work-dir another one.')


def check_images(model: VQAutoEncoder, parts: Mapping[str, Dataset]) -> None:
    """Refuse images that a release cannot be judged by.

    Args:
        model (VQAutoEncoder): The release's.
        parts (Mapping[str, Dataset]): Training images and held-out ones, by
            the names of their loaders.

    Raises:
        ValueError: If a pipeline normalises them, they are smaller than what
            a code stands for, or both data sets have one in common.
    """
    for part, dataset in parts.items():
        image = dataset[0]['inputs']
        try:
            check_form(model, dict(inputs=[image]))
        except ValueError as error:
            raise ValueError(f'`{part}`: {error}') from error
        if min(image.shape[-2:]) < model.downsample:
            raise ValueError(
                f'An image of `{part}` has {tuple(image.shape[-2:])} px, and '
                f'a code stands for {model.downsample} px a side; give larger '
                'images, or a smaller `model.downsample`.')
    shared = shared_files(*parts.values())
    if shared:
        raise ValueError(
            f'{len(shared)} of the held-out images are training images, too, '
            f'such as {min(shared)}: the leak report would compare them with '
            'themselves; hold out other images of the same source.')


def shared_files(train: Dataset, held_out: Dataset) -> Set[str]:
    """Files of the second data set whose bytes one of the first has.

    Args:
        train (Dataset): The first one.
        held_out (Dataset): The second one.
    """
    known = defaultdict(list)
    for path in _files(train):
        known[os.path.getsize(path)].append(path)
    hashes: Dict[int, Set[str]] = {}  # of as few files as possible
    shared = set()
    for path in _files(held_out):
        size = os.path.getsize(path)
        if size not in hashes:
            hashes[size] = {sha256(Path(one)) for one in known.get(size, ())}
        if hashes[size] and sha256(Path(path)) in hashes[size]:
            shared.add(path)
    return shared


def _files(dataset: Dataset) -> Iterator[str]:
    """The image files of a data set that are on a disk."""
    for part in parts_of(dataset):
        for index in range(len(part)):
            path = part.get_data_info(index).get('img_path')
            if isinstance(path, str) and os.path.isfile(path):
                yield path


def load_whole(model: VQAutoEncoder, checkpoint: str) -> None:
    """Load what a training left, all of it.

    Args:
        model (VQAutoEncoder): The release's.
        checkpoint (str): The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another model.
    """
    try:
        load_checkpoint(model, checkpoint, 'cpu', strict=True)
    except RuntimeError as error:
        said = ' '.join(str(error).split())
        raise ValueError(
            f"The checkpoint '{checkpoint}' is of another model than the "
            f"config's: {short(said)}.") from error

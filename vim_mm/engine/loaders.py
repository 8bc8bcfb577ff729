# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a loader of images is looked at for where a run builds it."""

import errno
import traceback
from functools import wraps
from pathlib import Path
from typing import Any, Callable, Union

from mmengine.dataset import BaseDataset
from mmengine.registry import FUNCTIONS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from vim_mm.utils.cli import is_user_error
from vim_mm.utils.coco_boxes import check_corners
from vim_mm.utils.coco_json import check_numbers, checked_coco, judging_coco
from vim_mm.utils.messages import cut, printable, short
from vim_mm.utils.refusals import frames
from .boxes import check_boxes
from .data_sets import NAME, as_list, check_files, named, parts_of

#: What a system says of a file that there is not.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
#: What data sets of the libraries read their annotations in.
_READING = ('full_init', 'load_data_list', 'load_annotations',
            'parse_data_info', 'filter_data')


def check_loaders(cls: type) -> None:
    """Let a class of runners build no loader of an empty data set.

    An endless sampler of none would never give its first index. Idempotent.

    Args:
        cls (type): mmengine's runner.
    """
    original = cls.build_dataloader
    if hasattr(original, 'checks'):
        return

    @wraps(original)
    def build(dataloader: Union[DataLoader, dict], *args,
              **kwargs) -> DataLoader:
        given = None
        if isinstance(dataloader, dict):
            given = dataloader.get('dataset')
            _check_collate(dataloader.get('collate_fn'))
        try:
            with checked_coco() as read:
                loader = original(dataloader, *args, **kwargs)
        except Exception as error:
            # mmengine's data sets join their annotations
            if 'at least one array to concatenate' in str(error):
                raise ValueError(_empty(given)) from error
            if not _reads_annotations(error):
                raise
            missing = _missing(error)
            if missing:
                raise FileNotFoundError(missing) from error
            if is_user_error(error):
                raise
            raise ValueError(_unreadable(given, error)) from error
        if not _num_images(loader):
            raise ValueError(_empty(given or loader.dataset))
        for part in parts_of(loader.dataset):
            if part.ann_file in read:
                check_numbers(part.ann_file, read[part.ann_file].categories,
                              part)
        check_files(loader.dataset)
        check_corners(read.values())
        check_boxes(loader.dataset)
        return loader

    build.checks = True
    cls.build_dataloader = staticmethod(build)
    cls.build_evaluator = _judging(cls.build_evaluator)


def _judging(original: Callable) -> Callable:
    """The method that builds metrics, which looks at what they read."""

    @wraps(original)
    def build(*args: Any, **kwargs: Any) -> Any:
        with judging_coco():
            return original(*args, **kwargs)

    return build


def build_dataset(cfg: dict) -> Dataset:
    """A data set outside of a run, looked at as those of runs are.

    Args:
        cfg (dict): Its config.

    Raises:
        ValueError: If it is empty, or its annotations are none.
    """
    return Runner.build_dataloader(
        dict(
            dataset=cfg,
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False))).dataset


def _check_collate(given: Any) -> None:
    """Refuse what is no function and names none that is registered."""
    kind = given.get('type') if isinstance(given, dict) else given
    if given is None or callable(kind) or (
            kind is not given and isinstance(kind, str)
            and FUNCTIONS.get(kind) is not None):
        return
    raise ValueError(
        f'`collate_fn` is {short(given)}; give a function, or a dict with the '
        "`type` of a registered one, such as 'pseudo_collate'.")


def _reads_annotations(error: Exception) -> bool:
    """Whether an error comes from a library's data set about its files."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.name in _READING and '/datasets/' in Path(
        frame.filename).as_posix() for frame in frames)


def _unreadable(dataset: Any, error: Exception) -> str:
    """The sentence on annotations that a library gave up on."""
    said = cut(printable(str(error)), 200).rstrip('.')
    mend = 'Install that package' if isinstance(error, ImportError) else \
        'Look at the settings of the data set (`data_prefix` and its keys, ' \
        'suffixes, seeds), or export them again'
    return (f'The annotations of {named(dataset)} cannot be read: '
            f'{type(error).__name__}, {said}. {mend}.')


def _missing(error: Exception) -> str:
    """The sentence on a file that a data set reads beside its list.

    Empty if that is not the cause; whether the list is there is known.
    """
    path = getattr(error, 'filename', None)
    dataset = None
    for frame in frames(error):
        owner = frame.f_locals.get('self')
        dataset = owner if isinstance(owner, BaseDataset) else dataset
    if dataset is None or not isinstance(path, str) or path == \
            dataset.ann_file or getattr(error, 'errno', None) not in _GONE:
        return ''
    name = cut(printable(path), NAME)
    return (f"{named(dataset)} reads '{name}', which is not there"
            f'{as_list(dataset, [path])}; look at `ann_file`, `data_root` and '
            '`data_prefix`.')


def _empty(dataset: Any) -> str:
    """The sentence on a data set without images."""
    return (f'The data set {named(dataset)} is empty; look at its '
            'annotations, `data_prefix`, class names and `filter_cfg`.')


def _num_images(loader: DataLoader) -> int:
    try:
        return len(loader.dataset)
    except TypeError:  # a stream has no length
        return 1

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a run judges by, against what it predicts and learns."""

import logging
import os.path as osp
from typing import Any, Dict, Iterator, List, Optional, Tuple

from mmengine.dataset import BaseDataset, InfiniteSampler
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader, Dataset

from vim_mm.utils.class_names import check_same_names
from vim_mm.utils.messages import short
from .data_sets import LISTED, infos, parts_of
from .judged import check_judged, listed_names


def check_judges(runner: Runner) -> None:
    """Compare the data sets of a run's loops with each other and its metrics.

    Args:
        runner (Runner): The run, whose loops are built as far as it needs
            them.

    Raises:
        ValueError: If a metric has another file than its data set, a loop
            never ends or leaves images out, classes and labels are not those
            of the training and the head, or label maps those of other images.
    """
    learned: Dict[str, Tuple[str, List[str]]] = {}
    trained = dict(_data_sets(runner._train_loop))
    for task, dataset in trained.items():
        _check_names(learned, task, 'train_dataloader', dataset)
    for stage in ('val', 'test'):
        for task, loop in ordinary_loops(getattr(runner, f'_{stage}_loop')):
            loader = f'{stage}_dataloader{task}'
            check_ends(loop, loader)
            _check_all_judged(loop, loader)
            dataset = loop.dataloader.dataset
            for metric in loop.evaluator.metrics:
                _check_metric(metric, dataset, f'{stage}_evaluator{task}')
            _check_names(learned, task, f'{stage}_dataloader', dataset)
            if task in trained:
                _check_own_maps(trained[task], dataset, loader)
            check_judged(runner, loop, task[1:], loader)


def _check_names(learned: Dict[str, Tuple[str, List[str]]], task: str,
                 where: str, dataset: Dataset) -> None:
    """Refuse classes that are numbered otherwise, as folders sort, too."""
    for names in listed_names(dataset):
        first = learned.setdefault(task, (where + task, names))
        check_same_names(*first, where + task, names)


def _data_sets(loop: Any) -> Iterator[Tuple[str, Dataset]]:
    """The data sets that a loop trains with, by '.TASK'."""
    if isinstance(loop, BaseLoop):
        own = loop.dataloader.dataset
        by_task = getattr(own, 'datasets', None)
        if isinstance(by_task, dict):
            yield from ((f'.{task}', each) for task, each in by_task.items())
        else:
            yield '', own


def _check_own_maps(learned: Dataset, judged: Dataset, where: str) -> None:
    """Refuse label maps of training beside other images."""
    maps = dict(_maps_of(learned))
    for path, image in _maps_of(judged):
        if maps.get(path, image) != image:
            raise ValueError(
                f'The label map {path} is that of {maps[path]} in '
                f'`train_dataloader`, and of {image} in `{where}`: one of '
                'both is wrong; look at their `data_prefix.seg_map_path`.')


def _maps_of(dataset: Dataset) -> Iterator[Tuple[str, str]]:
    """Label maps of a data set, each with its image."""
    for part in parts_of(dataset):
        for info in infos(part, LISTED):
            if not isinstance(info.get('seg_map_path'), str):
                break
            yield info['seg_map_path'], info.get('img_path', '')


def _check_all_judged(loop: BaseLoop, where: str) -> None:
    """Refuse a loader that leaves the last images out."""
    loader = loop.dataloader
    sampler = getattr(loader, 'batch_sampler', None)
    if not getattr(sampler, 'drop_last', False):
        return
    left = len(loader.dataset) % sampler.batch_size
    if left:
        raise ValueError(
            f'`{where}.drop_last` is True, so {left} of '
            f'{len(loader.dataset)} images are not judged; leave it out.')


def check_ends(loop: Any, where: str, by_epoch: bool = True) -> None:
    """Refuse a loop over data that never ends.

    Args:
        loop (BaseLoop): The loop.
        where (str): Where its loader stands in the config.
        by_epoch (bool): Whether it waits for the end.

    Raises:
        ValueError: If it would wait for ever.
    """
    loader = getattr(loop, 'dataloader', None)
    if by_epoch and isinstance(loader, DataLoader) and isinstance(
            loader.sampler, InfiniteSampler):
        raise ValueError(
            f'`{where}` has an InfiniteSampler, whose pass through the data '
            "never ends; give it `sampler=dict(type='DefaultSampler', …)`.")


def ordinary_loops(loop: Any) -> Iterator[Tuple[str, BaseLoop]]:
    """The ordinary loops of a loop that judges, by '.TASK'."""
    if not isinstance(loop, BaseLoop):
        return
    by_task = getattr(loop, 'loops', None)
    if by_task is None and hasattr(loop, 'evaluator'):
        yield '', loop
    for task, each in (by_task or {}).items():
        yield f'.{task}', each


# ------------------------------------------------------------ files of boxes


def _check_metric(metric: Any, dataset: Dataset, where: str) -> None:
    """Compare the images and categories that a metric of boxes has read.

    Images go by their ids alone, so another file gives a number, too.
    """
    _say_ignored(metric, dataset, where)
    if getattr(metric, 'format_only', False) and getattr(
            metric, 'output_dir', '') is None:
        raise ValueError(f'`{where}.format_only` is True, and it has no '
                         '`output_dir` to write into; name a folder.')
    known = getattr(metric, '_coco_api', None) or getattr(
        metric, '_lvis_api', None)
    parts = [part for part in parts_of(dataset) if isinstance(part,
                                                              BaseDataset)]
    if known is None or not parts:
        return
    seen = set()
    for info in (info for part in parts for info in infos(part, LISTED)):
        index, path = info.get('img_id'), info.get('img_path')
        seen.add(index)
        theirs = _file_name(known.imgs.get(index))
        if theirs is not None and isinstance(path, str) and (
                osp.basename(path) != osp.basename(theirs)):
            raise ValueError(
                f'The `ann_file` of `{where}` calls the image {short(index)} '
                f'{short(theirs)}, and the data set {short(path)}: results '
                'would be compared with boxes of another image; give both '
                'the same file.')
    if len(seen) < len(dataset) <= LISTED:
        raise ValueError(
            f'The data set of `{where}` gives {len(dataset)} images, and '
            f'{len(seen)} unlike ones: boxes that are found twice in an image '
            'count as wrong; give each once.')
    lacking = seen - set(known.imgs)
    if lacking:
        raise ValueError(
            f'The `ann_file` of `{where}` lacks {len(lacking)} of the '
            f'{len(seen)} images of the data set, such as '
            f'{short(next(iter(lacking)))}; give both the same file.')
    if any(base.__name__ == 'CocoMetric' for base in type(metric).__mro__):
        _check_categories(known, dataset, where)
    more = set(known.imgs) - seen
    if more:
        print_log(
            f'The `ann_file` of `{where}` has {len(more)} images more than '
            'the data set: nothing is found in them, which lowers the '
            'metric; give both the same images.',
            logger='current',
            level=logging.WARNING)


def _say_ignored(metric: Any, dataset: Dataset, where: str) -> None:
    """Name a class that a metric of label maps leaves out."""
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    index = getattr(metric, 'ignore_index', None)
    if isinstance(index, int) and 0 <= index < len(classes):
        print_log(
            f'`{where}.ignore_index` is {index}, so {short(classes[index])} '
            'counts for nothing in the metric.',
            logger='current',
            level=logging.WARNING)


def _file_name(image: Optional[dict]) -> Optional[str]:
    """LVIS has an address in its place."""
    if image is None:
        return None
    return image.get('file_name') or image.get('coco_url')


def _check_categories(known: Any, dataset: Dataset, where: str) -> None:
    """Labels are numbers of the classes that the metric's file lists."""
    own = list((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())
    theirs = [each['name'] for each in known.cats.values()
              if each.get('name') in own]
    if own != theirs:
        index = next((i for i, pair in enumerate(zip(own, theirs))
                      if pair[0] != pair[1]), len(theirs))
        raise ValueError(
            f'The `ann_file` of `{where}` has the classes {short(theirs)}, '
            f'and the data set {short(own)}: they differ from number {index} '
            'on, so boxes would count for other classes; give both the same '
            'file.')

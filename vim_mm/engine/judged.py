# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Labels that a run judges by, which nothing but a metric looks at."""

import logging
from numbers import Integral
from typing import Any, Dict, Iterator, List, Optional, Sequence

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from vim_mm.models.class_counts import (check_labels, class_counts,
                                        label_counts, main_heads)
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.utils.wrappers import unwrap
from .data_sets import LISTED, infos, parts_of
from .model_parts import is_own, saved_model

#: Label maps that are looked at before a training.
_MAPS = 16


def check_judged(runner: Runner, loop: BaseLoop, task: str,
                 where: str) -> None:
    """Refuse labels of a data set that a model's head has no place for.

    What the data set has listed is looked at, without an image.

    Args:
        runner (Runner): The run.
        loop (BaseLoop): An ordinary loop that judges.
        task (str): The task that it judges; empty for a model of one.
        where (str): Where its loader stands in the config.

    Raises:
        ValueError: If a label is none of the head's, nothing is labelled, or
            boxes are judged in fewer classes than are found.
    """
    model = judged_model(runner, task)
    name, head = next(main_heads(model), ('', None)) if model else ('', None)
    dataset, metrics = loop.dataloader.dataset, loop.evaluator.metrics
    if head is None or not reads_truth(metrics):
        return
    _check_number(name, head.num_classes, dataset, metrics, where)
    known = labelled = False
    for part in parts_of(dataset):
        for info in infos(part, LISTED):
            labels = _listed(info)
            if labels is None:
                break
            known, labelled = True, labelled or bool(labels)
            bad = [k for k in labels if not 0 <= k < head.num_classes]
            if bad:
                image = info.get('img_path', info.get('img_id', ''))
                raise ValueError(
                    f'The image {image} of `{where}` has the label {bad[0]}, '
                    f'and `{name}` is built for {head.num_classes} classes, '
                    f'labels from 0 to {head.num_classes - 1}; correct the '
                    'annotations, or the classes of the data set.')
    if known and not labelled:
        raise ValueError(
            f'No image of `{where}` has a class or box, so there is nothing '
            'to judge by; look at its annotations and at the classes in '
            '`metainfo`, or leave the validation out.')


def reads_truth(metrics: Sequence[Any]) -> bool:
    """Whether a metric compares with annotations, and does not only write."""
    return not all(
        getattr(metric, 'format_only', False)
        or type(metric).__name__ == 'DumpResults' for metric in metrics)


def judged_model(runner: Runner,
                 task: Optional[str] = None) -> Optional[nn.Module]:
    """The ordinary model that is judged, if it has a part of ours.

    Args:
        runner (Runner): The run.
        task (str, optional): The task, of several; the running one if None.
    """
    model = unwrap(runner.model)
    if not isinstance(model, nn.Module) or not is_own(model):
        return None
    if isinstance(model, MultiTaskModel):
        return model.models[task or model.task]
    return saved_model(model)


def _check_number(name: str, number: int, dataset: Dataset, metrics: List[Any],
                  where: str) -> None:
    """Refuse boxes of classes that a metric has no number for."""
    counts = class_counts(dataset)
    if not counts or number <= max(counts):
        return
    said = (f'`model.{name}` tells {number} classes apart, and `{where}` has '
            f'{max(counts)}')
    if any('CocoMetric' in [base.__name__ for base in type(metric).__mro__]
           for metric in metrics):
        raise ValueError(f'{said}, so boxes of the others could not be '
                         'judged; give it the classes that were learned.')
    _warn(f'{said}: what is found of the others is always wrong.')


def _listed(info: dict) -> Optional[List[int]]:
    """The labels that a data set notes of an image; None if unknown."""
    if 'instances' in info:
        labels = [each.get('bbox_label') for each in info['instances']
                  if not each.get('ignore_flag')]
    else:
        given = info.get('gt_label')
        labels = list(given) if isinstance(given, (list, tuple)) or (
            getattr(given, 'ndim', 0) == 1) else [given]
    if all(isinstance(label, Integral) for label in labels):
        return [int(label) for label in labels]
    return None


def look_at_maps(model: nn.Module, loop: BaseLoop, where: str) -> None:
    """Look at label maps from all over a data set, before a training.

    Args:
        model (nn.Module): The ordinary model, not wrapped.
        loop (BaseLoop): The ordinary loop that judges it.
        where (str): Where its loader stands in the config.

    Raises:
        ValueError: If a label is none of the head's, or all are ignored.
    """
    if not reads_truth(loop.evaluator.metrics):
        return
    watch, dataset = JudgedPass(where, stops=True), loop.dataloader.dataset
    number = min(len(dataset), _MAPS)
    for index in range(number):
        sample = dataset[index * len(dataset) // number]
        samples = [sample['data_samples']] if isinstance(sample,
                                                         dict) else []
        if not samples or 'gt_sem_seg' not in samples[0]:
            return
        watch.look(model, dict(data_samples=samples))
    watch.end(f' of {number} images', stops=True)


class JudgedPass:
    """Looks at the labels of what is judged, once.

    Args:
        where (str): Where the data stands in the config.
        stops (bool): Whether labels of no class are refused, or named in a
            line: hours of training may be before a validation.
    """

    def __init__(self, where: str, stops: bool) -> None:
        self.where, self.stops = where, stops
        self._told = self._unknown = False
        self._counts: Dict[str, Tensor] = {}

    def look(self, model: nn.Module, data: Any) -> None:
        """Look at a batch.

        Args:
            model (nn.Module): The ordinary model, not wrapped.
            data: The batch as the loader gives it.

        Raises:
            ValueError: If a label is none of the head's.
        """
        try:
            check_labels(model, data, judged=True)
        except ValueError as error:
            if self.stops:
                raise ValueError(f'`{self.where}`: {error}') from error
            if not self._told:
                _warn(f'`{self.where}`: {error} Metrics count such labels as '
                      'wrong, or leave them out.')
            self._told = self._unknown = True
            return
        counts = label_counts(model, data)
        self._unknown = self._unknown or not counts
        for name, found in counts.items():
            self._counts[name] = self._counts.get(name, 0) + found

    def end(self, which: str = '', stops: bool = False) -> None:
        """Name labels by which little can be judged.

        Args:
            which (str): Which images were looked at, if not all.
            stops (bool): Whether it is refused that nothing is labelled.

        Raises:
            ValueError: If nothing is labelled.
        """
        everywhere: Dict[str, Tensor] = {}
        if self._unknown:
            self._counts = {}
        for own in all_gather_object(self._counts):
            for name, counts in own.items():
                everywhere[name] = everywhere.get(name, 0) + counts
        for name, counts in everywhere.items():
            seen = torch.nonzero(counts).flatten().tolist()
            if not seen:
                said = (f'Nothing{which} in `{self.where}` is '
                        'labelled, or all pixels are ignored, so there is '
                        'nothing to judge by; look at the annotations.')
                if stops:
                    raise ValueError(said)
                _warn(said)
            elif len(seen) == 1 < len(counts):
                _warn(f'All labels{which} in `{self.where}` are {seen[0]}, '
                      f'of the {len(counts)} classes of `{name}`, so a metric '
                      'says little; look at the annotations (masks of 0 and '
                      '255 have one class: 255 is ignored).')


def listed_names(dataset: Dataset) -> Iterator[List[str]]:
    """The class names of each data set inside of any wrappers."""
    for part in parts_of(dataset):
        names = (getattr(part, 'metainfo', None) or {}).get('classes')
        if isinstance(names, (list, tuple)) and names:
            yield list(map(str, names))


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A validation that would fail only after hours of training."""

import io
import logging
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stdout
from numbers import Real
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import FlexibleRunner, Runner, autocast
from torch import nn

from vim_mm.models.pixels import check_form
from vim_mm.models.tasks import holders, select_task
from vim_mm.utils.messages import short
from vim_mm.utils.refusals import is_ones_own, refusal, refused_by_library
from .explained import place_of
from .judged import look_at_maps
from .judges import ordinary_loops
from .model_parts import running_model
from .schedule_checks import waiting

_LOOK_AT = 'correct it, or `val_dataloader.dataset.pipeline`'
#: Images that a validation is tried with.
_TRIED = 2
#: Metrics that are quick, and judge any part of a data set.
_QUICK = ('Accuracy', 'AveragePrecision', 'CocoMetric', 'IoUMetric',
          'MultiLabelMetric', 'SingleLabelMetric')


# ----------------------------------------------------------------- validation


@torch.no_grad()
def try_validation(runner: Runner) -> None:
    """Judge two images before training, as it is to be done after hours.

    Nothing of it is logged, and the model is as before. Where processes hold
    a part of each tensor, all of them judge the same two images.

    Args:
        runner (Runner): The run, ready to train.

    Raises:
        ValueError: If that fails, or what is waited for is no metric.
    """
    model = runner.model
    if not isinstance(model, nn.Module) or type(runner) not in (
            Runner, FlexibleRunner):
        return
    loops = list(ordinary_loops(runner._val_loop))
    if not loops or runner.iter:  # a run that is resumed was tried
        return
    modes = {part: part.training for part in model.modules()}
    tasks = {holder: holder.task for holder in holders(model)}
    given: Dict[str, Any] = {}
    prefixes: List[str] = []
    model.eval()
    try:
        for task, loop in loops:
            scope = getattr(runner._val_loop, 'scopes', {}).get(task[1:])
            found = _judge(model, task[1:], loop, scope)
            before = f'{task[1:]}/' if task else ''
            given.update({f'{before}{k}': found[k] for k in found})
            prefixes += [f'{before}{key}' for key in _slow_names(loop)]
    finally:
        for part, training in modes.items():
            part.training = training
        for holder, running in tasks.items():
            holder.select_task(running)
    _check_names(runner, given, prefixes)


def _judge(model: nn.Module, task: str, loop: Any,
           scope: Optional[str]) -> Dict[str, Any]:
    """Metrics of two images; none if it would take long to know them."""
    if task:
        select_task(model, task)
    scope = scope or DefaultScope.get_current_instance().scope_name
    where = f'val_evaluator.{task}' if task else 'val_evaluator'
    evaluator, loader = loop.evaluator, loop.dataloader
    try:
        with DefaultScope.overwrite_default_scope(scope):
            items = [
                loader.dataset[index]
                for index in range(min(_TRIED, len(loader.dataset)))
            ]
            # images of unlike sizes may come alone
            size = loader.batch_size or 1
            for start in range(0, len(items), size):
                batch = loader.collate_fn(items[start:start + size])
                _check_form(model, batch, where)
                with autocast(enabled=loop.fp16):
                    outputs = model.val_step(batch)
                evaluator.process(data_samples=outputs, data_batch=batch)
            look_at_maps(running_model(model), loop,
                         where.replace('evaluator', 'dataloader'))
            for metric in evaluator.metrics:
                _check_masks(metric, where)
            if not all(map(_is_quick, evaluator.metrics)):
                return {
                    key: value for metric in evaluator.metrics
                    for key, value in _own_values(metric, where).items()
                }
            with _of_few(evaluator.metrics):
                return evaluator.evaluate(len(items))
    except Exception as error:
        if not refused_by_library(error):
            raise
        raise refusal(
            f'A validation would fail (`{where}`){place_of(model, error)}',
            error, _LOOK_AT) from error
    finally:
        for metric in evaluator.metrics:
            metric.results.clear()


def _check_form(model: nn.Module, batch: Any, where: str) -> None:
    try:
        check_form(running_model(model), batch, padded=False)
    except ValueError as error:
        loader = where.replace('evaluator', 'dataloader')
        raise ValueError(f'`{loader}`: {error}') from error


def _check_masks(metric: Any, where: str) -> None:
    """Refuse to judge masks of a model that gives none, as mmdet does late."""
    asked = getattr(metric, 'metrics', None) or ()
    found = [each[1] for each in metric.results
             if isinstance(each, tuple) and len(each) == 2]
    if 'segm' in asked and found and not any('masks' in each
                                             for each in found):
        raise ValueError(
            f"A validation would fail: `{where}` judges masks ('segm'), and "
            "the model gives none; leave 'segm' out of `metric`.")


def _own_values(metric: Any, where: str) -> Dict[str, Any]:
    """What a metric of one's own gives; nothing where it needs all images.

    Those of libraries give numbers, and some take long.
    """
    if not is_ones_own(type(metric)) or not metric.results:
        return {}
    with _of_few([metric]):
        try:
            found = metric.compute_metrics(list(metric.results))
        except Exception:  # of two images, which may be too few
            return {}
    if not isinstance(found, Mapping):
        raise ValueError(
            f'`{where}`: `compute_metrics` of {type(metric).__name__} gives '
            f'{short(found)}; let it return a dict of numbers by name.')
    prefix = f'{metric.prefix}/' if metric.prefix else ''
    return {f'{prefix}{key}': value for key, value in found.items()}


def _is_quick(metric: Any) -> bool:
    return type(metric).__name__ in _QUICK and not getattr(
        metric, 'format_only', False)


@contextmanager
def _of_few(metrics: List[Any]) -> Iterator[None]:
    """Within, metrics judge images that they have results of, and are quiet.

    Those of boxes look at all images of their file otherwise, and at nothing
    where no box was found: then one is made up.
    """
    kept = [dict(vars(metric)) for metric in metrics]
    for metric in metrics:
        if not hasattr(metric, '_coco_api'):
            continue
        found = [each[1] for each in metric.results]
        metric.img_ids = [each['img_id'] for each in found]
        metric.outfile_prefix = None
        if found and not any(len(each['labels']) for each in found) \
                and 'masks' not in found[0]:
            found[0].update(
                bboxes=np.array([[0., 0., 1., 1.]]),
                scores=np.array([0.5]),
                labels=np.array([0]))
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
        for metric, state in zip(metrics, kept):
            vars(metric).clear()
            vars(metric).update(state)


def _slow_names(loop: Any) -> Iterator[str]:
    """What names of metrics begin with that were not computed."""
    if all(map(_is_quick, loop.evaluator.metrics)):
        return
    for metric in loop.evaluator.metrics:
        prefix = f'{metric.prefix}/' if metric.prefix else ''
        if prefix == 'coco/' and not getattr(metric, 'classwise', True):
            for kind in metric.metrics:
                # of proposals there are recalls
                yield f'{prefix}{kind}_mAP' if kind in (
                    'bbox', 'segm') else f'{prefix}AR'
        else:
            yield prefix


def _check_names(runner: Runner, given: Dict[str, Any],
                 prefixes: List[str]) -> None:
    """Metrics that are waited for are among those that there are."""
    for owner, name, _ in waiting(runner):
        if name not in ('auto', *given) and not name.startswith(
                tuple(prefixes)):
            names = [*given, *(f'{each}…' for each in prefixes)]
            raise ValueError(
                f'{owner} waits for the metric {short(name)}, and a '
                f'validation gives {", ".join(names)}; name one of these.')
        value = given.get(name, 0)
        if not isinstance(value, (Real, np.ndarray, torch.Tensor)):
            raise ValueError(
                f'{owner} waits for the metric {short(name)}, which is '
                f'{short(value)} and no number; let the metric give one.')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The first batches and steps of a run, by which nothing may be learned."""

import logging
from collections import defaultdict
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from vim_mm.models.box_heads import check_smallest
from vim_mm.models.class_counts import (check_labels, check_no_soft,
                                        label_counts)
from vim_mm.models.distillers import BaseDistiller
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.pixels import check_form
from vim_mm.utils.messages import short
from vim_mm.utils.wrappers import unwrap
from .box_losses import BoxLosses
from .gradients import Gradients, OutputGradients, wrappers
from .model_parts import is_own
from .rates import backbones

#: Batches without a label before a line says so, and steps at a rate of zero,
#: or without a gradient, before the run stops.
PATIENCE = 50
#: Steps after which a head that began with zeros has let gradients through.
_SOME = 3
_LOOK = ('look at the annotations, and at what the pipeline makes of them '
         '(`reduce_zero_label`, crops, filters).')
_BETWEEN = 'what is between it and the losses (a `detach`, `no_grad`), at '


class BatchWatch:
    """Looks at a run's batches once, at its first rates and gradients.

    A model without parts of vim_mm is left alone.

    Args:
        runner (Runner): The run, ready to train.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        whole = unwrap(runner.model)
        self.model: nn.Module = whole
        self._has_teacher = isinstance(whole, BaseDistiller)
        if self._has_teacher:
            self.model = whole.student
        looks = is_own(whole)
        if looks:
            _say_in_order(runner)
        self._passes = {
            task: FirstPass(size, task)
            for task, size in _batches(runner).items()
        } if looks else {}
        self._boxes: Dict[Optional[str], BoxLosses] = defaultdict(BoxLosses)
        self._labelled = False
        self._idle = min(runner.max_iters, PATIENCE) if looks else 0
        self._tried = self._idle
        self._gradients = dict(_watched(runner, whole)) if looks else {}
        backbone = getattr(self.model, 'backbone', None)
        self._outputs = OutputGradients(backbone) if looks and isinstance(
            backbone, nn.Module) else None

    def look(self, data: Any) -> None:
        """Look at the labels of a batch, until all images were seen once.

        Raises:
            ValueError: If a label is none of the head's, no image has any, or
                a pipeline does not give what the model takes.
        """
        model, self._task = self.model, None
        if not self._has_teacher:
            check_no_soft(data)
        if isinstance(model, MultiTaskModel):
            self._task = data['task']
            model = model.models[self._task]
        if self._outputs is not None and self._tried:
            self._outputs.task = self._task or ''
        watched = self._passes.get(self._task)
        if watched is not None:
            if watched.look(model, data):
                del self._passes[self._task]
            self._labelled = watched.labelled

    def look_at_step(self, losses: Optional[dict] = None) -> None:
        """Look at losses and rates of a step, and whether gradients come.

        Args:
            losses (dict, optional): Its losses by name.

        Raises:
            ValueError: If all rates were zero in the first steps, no gradient
                came, or no box found a place.
        """
        if self._outputs is not None:
            self._outputs.task = None
        if self._tried:
            # a student may have no losses of its own
            if not self._has_teacher:
                self._boxes[self._task].add(self._labelled, losses)
            self._tried -= 1
            if not self._tried:
                self._check_gradients()
                for boxes in self._boxes.values():
                    boxes.check(_left_out(self.model))
        if self._idle:
            self._look_at_rates()

    def _look_at_rates(self) -> None:
        self._idle -= 1
        groups = [
            group for wrapper in wrappers(self.runner)
            for group in wrapper.optimizer.param_groups
        ]
        if not groups or any(group['lr'] for group in groups):
            self._idle = 0
        elif not self._idle:
            raise ValueError(
                'All learning rates were 0 in each step so far, so nothing is '
                'learned; look at `param_scheduler` (OneCycleLR needs '
                '`eta_max` and `total_steps`).')

    def _check_gradients(self) -> None:
        watched, self._gradients = self._gradients, {}
        for what, gradients in watched.items():
            few = gradients.steps < (_SOME if what else 1)
            if gradients.came() or few:  # all processes ask
                continue
            raise ValueError(
                f'No gradient has come to {what or "any part of the model"} '
                f'in the first {self.runner.iter + 1} steps, so '
                f'{"it learns nothing" if what else "nothing is learned"}; '
                f'look at {_BETWEEN if what else ""}what losses are '
                'multiplied by (`loss_weight`, `class_weight`), and at what '
                'the pipeline leaves of the annotations.')

        outputs, self._outputs = self._outputs, None
        lacking = outputs.lacking(_SOME) if outputs is not None else []
        if self.runner.max_iters >= PATIENCE:
            self._tell_lacking(lacking)

    def _tell_lacking(self, tasks: List[str]) -> None:
        """Refuse a head that lets no gradient through, of several name it."""
        weights = getattr(self.model, 'loss_weights', {})
        for task in tasks:
            whose = f" of the task '{task}'" if task else ''
            said = (
                'No gradient has come back to what `backbone` gives in the '
                f'first {self.runner.iter + 1} steps{whose}, so it learns '
                f'nothing of them; look at {_BETWEEN}what losses are '
                'multiplied by (`loss_weight`).')
            if not task:
                raise ValueError(said)
            if weights.get(task, 1):  # others are named already
                print_log(said, logger='current', level=logging.WARNING)

    def close(self) -> None:
        """Look at nothing any more, as of a run that has failed."""
        if self._outputs is not None:
            self._outputs.close()

    def end(self) -> None:
        """Name tasks of which no batch of the run has had a label."""
        for watched in self._passes.values():
            watched.end()


class FirstPass:
    """Looks at the batches of one data set until each image was seen.

    Args:
        size (int): Batches of a pass.
        task (str, optional): The task that the data set is of. Defaults to
            None, for a model of one task.

    Attributes:
        labelled (bool): Whether something of the last batch is labelled.
    """

    def __init__(self, size: int, task: Optional[str] = None) -> None:
        self._size = size
        self._where = '' if task is None else f'tasks.{task}.'
        self._whose = '' if task is None else f" of the task '{task}'"
        self._seen = 0
        self.labelled = self._any = False
        self._counts: Dict[str, Tensor] = {}

    def look(self, model: nn.Module, data: Any) -> bool:
        """Look at a batch; see :meth:`BatchWatch.look`.

        Returns:
            bool: Whether the pass is over.
        """
        self._seen += 1
        if self._seen == 1:
            check_form(model, data)
            check_smallest(model, data)
        self.labelled = check_labels(model, data)
        self._any = self._any or self.labelled
        for name, counts in label_counts(model, data).items():
            name = f'{self._where}{name}'
            self._counts[name] = self._counts.get(name, 0) + counts
        if self._seen == self._size:
            self._check_any()
            self._name_unseen()
        elif self._seen == PATIENCE and not self._any:
            print_log(
                f'Nothing in the first {PATIENCE} batches{self._whose} is '
                f'labelled; {_LOOK}',
                logger='current',
                level=logging.WARNING)
        return self._seen == self._size

    def end(self) -> None:
        """Look back where a run ends before its first pass does."""
        if self._seen and not self._any:
            print_log(
                f'Nothing in the {self._seen} batches of the run{self._whose} '
                f'was labelled, so nothing was learned of it; {_LOOK}',
                logger='current',
                level=logging.ERROR)

    def _check_any(self) -> None:
        labelled = torch.tensor(int(self._any))
        all_reduce(labelled, op='max')
        if not labelled:
            raise ValueError(
                f'Nothing in the whole training set{self._whose} is labelled: '
                'no image has a class, no box is left, or all pixels are '
                f'ignored; {_LOOK}')

    def _name_unseen(self) -> None:
        """Say which classes of a data set no image has shown."""
        everywhere: Dict[str, Tensor] = {}
        for own in all_gather_object(self._counts):
            for name, counts in own.items():
                everywhere[name] = everywhere.get(name, 0) + counts
        for name, counts in everywhere.items():
            lacking = (counts == 0).nonzero().flatten().tolist()
            if lacking and len(lacking) < len(counts):
                print_log(
                    f'Labels {short(lacking)}, of the {len(counts)} classes of'
                    f' `{name}`, were in no image of the first pass, so '
                    f'nothing is learned of them; {_LOOK}',
                    logger='current',
                    level=logging.WARNING)


def _watched(runner: Runner,
             model: nn.Module) -> Iterator[Tuple[str, Gradients]]:
    """All that learns, and each module that does, by what to call it."""
    yield '', Gradients(runner, _learning(model))
    if runner.max_iters < PATIENCE:
        return  # none comes through a head that begins with zeros
    for prefix, backbone in backbones(model):
        for name, module in backbone.bank.members.items():
            own = _learning(module)
            if own:
                yield f"the module '{name}' of `{prefix}`", Gradients(
                    runner, own)


def _learning(part: nn.Module) -> List[nn.Parameter]:
    return [param for param in part.parameters() if param.requires_grad]


def _left_out(model: nn.Module) -> Set[str]:
    """Names of losses that a config multiplies by 0."""
    return {
        name.rpartition('.')[2]
        for name, part in model.named_modules()
        if getattr(part, 'loss_weight', None) == 0
    }


def _say_in_order(runner: Runner) -> None:
    """Say that a training set is read in its own order."""
    loader = runner.train_dataloader
    by_task = getattr(loader, 'loaders', None) or {'': loader}
    for task, one in by_task.items():
        if getattr(one.sampler, 'shuffle', True) is False:
            print_log(
                f'`train_dataloader{"." * bool(task)}{task}.sampler` does not '
                'shuffle: batches are in the order of the data set, often '
                'class by class.',
                logger='current',
                level=logging.WARNING)


def _batches(runner: Runner) -> Dict[Optional[str], int]:
    """How many batches of each task a pass through its data has."""
    loader = runner.train_dataloader
    by_task = getattr(loader, 'loaders', None) or {None: loader}
    # an endless sampler has no last batch
    return {
        task: -(-len(one.dataset) // (
            getattr(one.batch_sampler, 'batch_size', 1) * get_world_size()))
        for task, one in by_task.items()
    }

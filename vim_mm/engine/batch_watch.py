# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The first batches and steps of a run, by which nothing may be learned."""

import logging
from typing import Any, Dict

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from vim_mm.features.cache import unwrap
from vim_mm.models.class_counts import check_labels, label_counts
from vim_mm.models.distillers import BaseDistiller
from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.pixels import check_form
from vim_mm.utils.messages import short
from .gradients import wrappers
from .model_parts import is_own

#: Batches without a label before a line says so, and steps at a rate of zero
#: before the run stops.
PATIENCE = 50
_LOOK = ('look at the annotations, and at what the pipeline makes of them '
         '(`reduce_zero_label`, crops, filters).')


class BatchWatch:
    """Looks at a run's batches once, and at its first rates.

    A model without parts of vim_mm is left alone.

    Args:
        runner (Runner): The run, ready to train.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.model: nn.Module = unwrap(runner.model)
        if isinstance(self.model, BaseDistiller):
            self.model = self.model.student
        looks = is_own(unwrap(runner.model))
        loader = runner.train_dataloader
        # an endless sampler has no last batch
        size = getattr(loader.batch_sampler, 'batch_size', 1)
        self._pass = -(-len(loader.dataset) // (size * get_world_size()))
        self._seen = 0 if looks else self._pass
        self._labelled = False
        self._counts: Dict[str, Tensor] = {}
        self._idle = min(runner.max_iters, PATIENCE) if looks else 0

    def look(self, data: Any) -> None:
        """Look at the labels of a batch, until all images were seen once.

        Raises:
            ValueError: If a label is none of the head's, no image has any, or
                a pipeline does not give what the model takes.
        """
        if self._seen == self._pass:
            return
        self._seen += 1
        model = self.model
        if isinstance(model, MultiTaskModel):
            model = model.models[data['task']]
        if self._seen == 1:
            check_form(model, data)
        self._labelled = check_labels(model, data) or self._labelled
        if model is self.model:  # of several tasks none is seen in turn
            for name, counts in label_counts(model, data).items():
                self._counts[name] = self._counts.get(name, 0) + counts
        if self._seen == self._pass:
            self._check_any()
            self._name_unseen()
        elif self._seen == PATIENCE and not self._labelled:
            print_log(
                f'Nothing in the first {PATIENCE} batches is labelled; '
                f'{_LOOK}',
                logger='current',
                level=logging.WARNING)

    def _check_any(self) -> None:
        labelled = torch.tensor(int(self._labelled))
        all_reduce(labelled, op='max')
        if not labelled:
            raise ValueError(
                'Nothing in the whole training set is labelled: no box is '
                f'left, or all pixels are ignored; {_LOOK}')

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

    def look_at_rates(self) -> None:
        """Look at the rates of a step, until one is not zero.

        Raises:
            ValueError: If all were zero in the first steps.
        """
        if not self._idle:
            return
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

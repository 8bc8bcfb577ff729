# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os.path as osp
from functools import wraps
from typing import Any, Optional

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from vim_mm.registry import HOOKS
from vim_mm.utils.wrappers import unwrap
from ..first_bad import bad_weight, first_bad
from ..gradients import wrappers
from ..model_parts import is_own

#: mmengine adds up what has 'loss' in its name, and gets 0 of nothing.
_NO_LOSS = ("The model gives no loss: of what its `loss` returns no name has "
            "'loss' in it, and others are logged alone; call one such as "
            "'loss_cls'.")
_MEND = ('{} Look at the images of this batch, lower '
         '`optim_wrapper.optimizer.lr`, or set `optim_wrapper.clip_grad`.')


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop a run whose loss is no number, before the step spoils its weights.

    All processes stop together, and the message names the losses and the
    first part of the model whose output is not finite. Weights that are not
    finite are never saved, so the last checkpoint stays a good one. Every
    runner has this hook; it looks at models with parts of vim_mm.

    It waits for the device once more in an iteration, between the backward
    pass and the step, as ``clip_grad`` does.

    Args:
        patience (int): With mixed precision, whose loss scaler leaves out
            steps that overflow, so many losses in a row may be none.
            Defaults to 5.
    """

    # before CheckpointHook removes and writes
    priority = 'VERY_HIGH'

    def __init__(self, patience: int = 5) -> None:
        self.patience = patience
        self._watches = False
        self._bad = self._steps = 0
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Look at every loss before it changes weights."""
        self._watches, self._steps = is_own(unwrap(runner.model)), 0
        for wrapper in wrappers(runner):
            if self._watches:
                self._watch(runner, wrapper)

    def _watch(self, runner: Runner, wrapper: BaseOptimWrapper) -> None:
        original = type(wrapper).backward

        @wraps(original)
        def backward(loss: Tensor, **kwargs: Any) -> None:
            if not isinstance(loss, Tensor):
                raise ValueError(_NO_LOSS)
            original(wrapper, loss, **kwargs)
            self._look(runner, wrapper, loss.detach())

        wrapper.backward = backward

    def _look(self, runner: Runner, wrapper: BaseOptimWrapper,
              loss: Tensor) -> None:
        bad = (~torch.isfinite(loss)).any().float()
        all_reduce(bad, op='max')
        self._bad = self._bad + 1 if bad else 0
        scales = hasattr(wrapper, 'loss_scaler')
        if self._bad > (self.patience - 1 if scales else 0):
            raise ValueError(self._refusal(runner, float(loss)))

    def why_it_fails(self, runner: Runner) -> Optional[str]:
        """What is not finite where a step ended in a library's error.

        Some heads assert that what they are given is finite, so no loss ever
        comes.

        Args:
            runner (Runner): The run.

        Returns:
            str | None: A sentence; None if the error has another cause.
        """
        if not self._watches or self._batch is None:
            return None
        where = self._bad_weight(runner)
        if where is None:
            try:
                part, _ = first_bad(unwrap(runner.model), self._batch)
            except Exception:  # models raise all kinds
                return None
            if part is None:
                return None
            where = f'`{part}` is the first part whose output is not finite'
        return (f'There is no loss in iteration {runner.iter + 1}: {where}. '
                f'The run stops; {_MEND.format(_last(runner))}')

    def _bad_weight(self, runner: Runner) -> Optional[str]:
        name = bad_weight(unwrap(runner.model))
        if name is None:
            return None
        since = 'since the step before' if self._steps else \
            'since before the first step, as a file or an `init_cfg` made them'
        return f'the weights `{name}` are not finite, {since}'

    def before_train_iter(self,
                          runner: Runner,
                          batch_idx: int,
                          data_batch: Optional[dict] = None) -> None:
        """Keep the batch, to run it again where its loss is none."""
        self._batch = data_batch

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch: Optional[dict] = None,
                         outputs: Optional[dict] = None) -> None:
        """Look at the weights where a checkpoint is about to be written."""
        self._batch = None
        self._steps += 1
        if any(self._is_due(runner, hook) for hook in runner.hooks):
            self._check_weights(runner)

    def _is_due(self, runner: Runner, hook: Hook) -> bool:
        return isinstance(hook, CheckpointHook) and not hook.by_epoch and (
            self.every_n_train_iters(runner, hook.interval)
            or self.is_last_train_iter(runner))

    def after_train_epoch(self, runner: Runner) -> None:
        """See :meth:`after_train_iter`."""
        self._check_weights(runner)

    def before_val(self, runner: Runner) -> None:
        """See :meth:`after_train_iter`; the best one may be written."""
        self._check_weights(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See :meth:`after_train_iter`."""
        self._check_weights(runner)

    def _check_weights(self, runner: Runner) -> None:
        name = bad_weight(unwrap(runner.model)) if self._watches else None
        if name is not None:
            raise ValueError(
                f'The weights `{name}` are not finite after iteration '
                f'{runner.iter + 1}, so no checkpoint is written; '
                f'{_last(runner)} Lower `optim_wrapper.optimizer.lr`, or set '
                '`optim_wrapper.clip_grad`.')

    def _refusal(self, runner: Runner, loss: float) -> str:
        where = self._bad_weight(runner) or self._where(runner)
        return (f'The loss is {loss} in iteration {runner.iter + 1}: {where}. '
                f'The run stops before this changes any weight; '
                f'{_MEND.format(_last(runner))}')

    def _where(self, runner: Runner) -> str:
        """Which part and which loss, if the batch shows it again."""
        try:
            part, losses = first_bad(unwrap(runner.model), self._batch)
        except Exception as error:  # models raise all kinds
            return f'run again, the batch ends in "{error}"'
        if part is None and not losses:
            return 'run again, the same batch has a finite one'
        said = [f'`{part}` is the first part whose output is not finite'] \
            if part is not None else []
        if losses:
            said.append(f'not finite are {", ".join(losses)}')
        return ', and '.join(said)


def _last(runner: Runner) -> str:
    path = runner.message_hub.runtime_info.get('last_ckpt')
    if path and osp.exists(path):
        return f'the last checkpoint is {path}.'
    return 'no checkpoint has been written yet.'

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What an optimizer must know of several tasks, and of a sharded model."""

import logging

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from vim_mm.models.multitask import MultiTaskModel

#: Optimizers that scale each tensor's step by its norm.
WHOLE_TENSORS = ('lamb', 'lars')


def spare_idle(runner: Runner, model: MultiTaskModel) -> None:
    """Let no optimizer move what did not run since its last step.

    Args:
        runner (Runner): The run, ready to train.
        model (MultiTaskModel): Its model, not wrapped.
    """
    optimizer = runner.optim_wrapper.optimizer
    if not hasattr(optimizer, 'register_step_pre_hook'):
        print_log(
            f'{type(optimizer).__name__} takes no hooks: weight decay and '
            'momentum move the heads of tasks that do not run in a step.',
            logger='current',
            level=logging.WARNING)
        return
    optimizer.register_step_pre_hook(lambda *_: model.drop_idle_grads())


def see_whole_tensors(runner: Runner) -> None:
    """Let norms be those of whole tensors where each process has a part.

    Raises:
        ValueError: If the optimizer takes norms of its own, or cannot tell
            parameters apart.
    """
    model, wrapper = runner.model, runner.optim_wrapper
    # ZeRO's holds the one that was asked for
    name = type(getattr(wrapper.optimizer, 'optimizer',
                        wrapper.optimizer)).__name__
    is_parted = isinstance(model, FullyShardedDataParallel) or type(
        wrapper.optimizer).__name__.startswith('DeepSpeedZero')
    if is_parted and name.lower().startswith(WHOLE_TENSORS):
        raise ValueError(
            f'{name} scales steps by the norm of each tensor, of which FSDP '
            'and ZeRO give a process a part only; use AdamW, or neither.')
    if not isinstance(model, FullyShardedDataParallel):
        return
    if not model._use_orig_params:
        raise ValueError('The heads of tasks that do not run in a step are '
                         'spared by the optimizer; set '
                         '`strategy.model_wrapper.use_orig_params=True`, '
                         'which keeps their parameters apart.')
    if wrapper.clip_grad_kwargs and wrapper.grad_name == 'grad_norm':
        wrapper.clip_func = lambda _, **kwargs: model.clip_grad_norm_(**kwargs)

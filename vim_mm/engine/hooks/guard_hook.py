# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import re
from typing import Optional

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import BaseLoop, Runner

from vim_mm.features.cache import unwrap
from vim_mm.registry import HOOKS
from ..fit import check_classes, check_fit
from ..resume import check_counters, keep_numbers


@HOOKS.register_module()
class GuardHook(Hook):
    """Look at a checkpoint before anything else takes something from it.

    Of its notes, what a run does not need is dropped. One that is to be
    tested or validated must hold all that the model has learned, and number
    the classes as the data set does; training may start from less.

    Every runner has this hook: see :func:`vim_mm.engine.runner.guard_runner`.
    """

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check and reduce the checkpoint.

        Raises:
            ValueError: If it cannot be resumed from, or does not fit the
                model or the data set that it is to be judged by.
        """
        file = runner._load_from or 'The checkpoint'
        if runner._resume:
            check_counters(checkpoint, file)
        if 'state_dict' in checkpoint:
            keep_numbers(checkpoint, runner)
        loop = _judging_loop(runner)
        if loop is None:
            return
        model = unwrap(runner.model)
        if isinstance(model, BaseTTAModel):
            model = model.module
        state = {
            re.sub(r'^module\.', '', key): value
            for key, value in checkpoint.get('state_dict', checkpoint).items()
        }
        metainfo = getattr(loop.dataloader.dataset, 'metainfo', {})
        check_classes(
            metainfo.get('classes') or [],
            checkpoint.get('meta') or {}, file)
        check_fit(model, state, file)


def _judging_loop(runner: Runner) -> Optional[BaseLoop]:
    """The loop that tests or validates, unless the run trains."""
    # the runner's properties would build them
    if isinstance(runner._train_loop, BaseLoop):
        return None
    loops = (runner._test_loop, runner._val_loop)
    return next((loop for loop in loops if isinstance(loop, BaseLoop)), None)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.registry import HOOKS
from vim_mm.utils.seeds import STEP, seed_all
from ..exact import count_steps
from ..saving import BATCHES, SAMPLER_SEED


@HOOKS.register_module()
class ExactHook(Hook):
    """Let a resumed run equal one that was never stopped.

    Random numbers of a step depend on the run's seed and on the step alone,
    see :mod:`vim_mm.engine.exact`. Every run has this hook.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Take the order of the data, and the place in it, from the file."""
        loop, infos = runner.train_loop, runner.message_hub.runtime_info
        batches = getattr(loop.dataloader, 'batch_sampler', None)
        sampler = getattr(batches, 'sampler', None)
        resumed = runner._resume and runner.iter > 0
        if isinstance(getattr(sampler, 'seed', None), int):
            # drawn anew for a run whose config has no seed
            if resumed and isinstance(infos.get(SAMPLER_SEED), int):
                sampler.seed = infos[SAMPLER_SEED]
            runner.message_hub.update_info(SAMPLER_SEED, sampler.seed)
        done = infos.pop(BATCHES, 0)
        if hasattr(loop, 'batches_done') and resumed:
            loop.batches_done = min(max(done, 0), len(loop.dataloader))

    def before_train_epoch(self, runner: Runner) -> None:
        """Give batches numbers of their own, now that the loop begins."""
        if not _draws_by_step(runner):
            count_steps(runner.train_loop)

    def before_train_iter(self, runner: Runner, *args: Any,
                          **kwargs: Any) -> None:
        """Draw the numbers of this step."""
        if _draws_by_step(runner):
            return
        apart = runner._randomness_cfg.get('diff_rank_seed', False)
        seed_all(runner.seed, STEP, runner.iter, get_rank() * apart)


def _draws_by_step(runner: Runner) -> bool:
    """Whether the loop itself does what this hook does."""
    return getattr(runner.train_loop, 'draws_by_step', False)

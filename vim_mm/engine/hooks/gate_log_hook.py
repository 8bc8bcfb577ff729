# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vim_mm.features.cache import unwrap
from vim_mm.registry import HOOKS
from ..model_parts import fusing_part


@HOOKS.register_module()
class GateLogHook(Hook):
    """Log every gate of the current task as an ordinary scalar.

    Scalars are named ``gates/<slot>/<module>`` and reach whichever
    visualizer backends the config declares. Of a router they are the gates of
    an image that it has nothing to say about: the task's own.

    Args:
        interval (int): Iterations between two records. Defaults to 50.
    """

    priority = 'LOW'

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Runner, batch_idx: int, **_) -> None:
        """Record the gates every ``interval`` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self._record(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Record the gates the run ends with, if that is still to do."""
        if runner.iter % self.interval:
            self._record(runner, runner.iter)

    @staticmethod
    def _record(runner: Runner, step: int) -> None:
        gates = fusing_part(unwrap(runner.model)).gates()
        runner.visualizer.add_scalars(
            {
                f'gates/{slot}/{module}': weight
                for slot, row in gates.items()
                for module, weight in row.items()
            },
            step=step)

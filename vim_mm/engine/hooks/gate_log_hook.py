# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict

from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from vim_mm.models.multitask import MultiTaskModel
from vim_mm.models.tasks import select_task
from vim_mm.registry import HOOKS
from ..divided import LEAVE_OUT
from ..model_parts import ordinary, shown_gates


@HOOKS.register_module()
class GateLogHook(Hook):
    """Log every gate of the current task as an ordinary scalar.

    Scalars are named ``gates/<slot>/<module>``, of a multi-task model, whose
    tasks are all logged, ``gates/<task>/<slot>/<module>``, and reach whichever
    visualizer backends the config declares: those that the run starts with,
    and those that it ends with, too. Of a router they are the gates of
    an image that it has nothing to say about: the task's own.

    Args:
        interval (int): Iterations between two records. Defaults to 50.
    """

    # behind hooks that start gates
    priority = 'LOW'
    needs_whole = LEAVE_OUT

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def before_train(self, runner: Runner) -> None:
        """Record the gates the run starts with, after other hooks' work."""
        if runner.iter == 0:  # not resumed
            self._record(runner, 0)

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
        model = ordinary(runner.model, 'GateLogHook')
        if not isinstance(model, MultiTaskModel):
            scalars = _scalars(model, 'gates')
        else:
            last, scalars = model.task, {}
            for task in model.tasks:
                select_task(model, task)
                scalars.update(_scalars(model.of(task), f'gates/{task}'))
            select_task(model, last)
        runner.visualizer.add_scalars(scalars, step=step)


def _scalars(model: BaseModel, name: str) -> Dict[str, float]:
    """The gates of what runs, under names that begin with one."""
    return {
        f'{name}/{slot}/{module}': weight
        for slot, row in shown_gates(model).items()
        for module, weight in row.items()
    }

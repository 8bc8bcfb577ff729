# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Training, validation and tests of a :class:`MultiTaskModel`."""

import logging
from typing import Any, Mapping, Optional

from mmengine.dist import broadcast_object_list, get_rank
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from mmengine.runner import (BaseLoop, IterBasedTrainLoop, Runner, TestLoop,
                             ValLoop)
from torch import nn

from vim_mm.datasets import TaskLoader, TaskLoaders
from vim_mm.models.task_names import check_weights
from vim_mm.models.tasks import select_task
from vim_mm.registry import LOOPS
from vim_mm.utils.seeds import STEP, seed_all
from .optimizing import see_whole_tensors, spare_idle
from .task_parts import (build_loaders, by_task, check_heads,
                         check_same_classes, model_of, scopes_of)


@LOOPS.register_module()
class MultiTaskTrainLoop(IterBasedTrainLoop):
    """Train one task a step, drawn by weight, the same on all processes.

    What a step computes is a function of the weights before it, the run's
    seed and the step: the task, its samples, their augmentation and the
    random numbers of the model. So a resumed run equals one that was never
    interrupted, whatever the number of workers.

    Args:
        runner (Runner): The run.
        dataloader (Mapping[str, dict]): The ordinary loader of each task; None
            for one that is never drawn.
        max_iters (int): Steps.
        weights (Mapping[str, float], optional): How often each task is drawn,
            relative to the others; all alike when None.
        **kwargs: See :class:`mmengine.runner.IterBasedTrainLoop`.

    Raises:
        ValueError: If a task, weight, loader or data set does not fit.
    """

    #: ExactHook leaves random numbers to it.
    draws_by_step = True

    def __init__(self,
                 runner: Runner,
                 dataloader: Mapping[str, dict],
                 max_iters: int,
                 weights: Optional[Mapping[str, float]] = None,
                 **kwargs: Any) -> None:
        scopes, what = scopes_of(runner), 'train_dataloader'
        given = by_task(dataloader, scopes, what)
        if weights is None:
            weights = {task: float(task in given) for task in scopes}
        self.weights = check_weights(weights, list(scopes),
                                     'train_cfg.weights')
        drawn = [task for task, value in self.weights.items() if value]
        if not drawn:
            raise ValueError('All `train_cfg.weights` are 0, so there is no '
                             'task to train; give one of them more.')
        for task in drawn:
            if task not in given:
                raise ValueError(f'`{what}.{task}` is None, but its weight is '
                                 f'not 0; set `train_cfg.weights.{task}=0`.')
        scale = getattr(runner, 'auto_scale_lr', None) or {}
        if scale.get('enable'):
            raise ValueError('The learning rate cannot be scaled by the batch '
                             'size, which differs from task to task; turn '
                             '`auto_scale_lr` off.')
        for task in given.keys() - set(drawn):
            _warn(f"The task '{task}' is never drawn, since "
                  f'`train_cfg.weights.{task}` is 0; give it more, or set '
                  f'`{what}.{task}=None` if that is meant.')
        loaders = build_loaders(runner, dataloader, scopes, what)
        super().__init__(runner, TaskLoader(loaders, self.weights, max_iters),
                         max_iters, **kwargs)

    def run(self) -> nn.Module:
        """Train from where the run is to its last step."""
        model = self._check()
        seed = [self.runner.seed]
        broadcast_object_list(seed)
        self.seed = int(seed[0])
        self.dataloader.batch_sampler.seek(self.seed, self._iter)
        spare_idle(self.runner, model)
        see_whole_tensors(self.runner)
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        batches = iter(self.dataloader)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            if self._validates():
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batch: dict) -> None:
        """Train one step, with random numbers of its own.

        Args:
            data_batch (dict): A batch of one task.
        """
        seed_all(self.seed, STEP, self._iter, get_rank())
        super().run_iter(data_batch)

    def _validates(self) -> bool:
        due = (
            self._iter % self.val_interval == 0
            or self._iter == self._max_iters)
        return (self.runner.val_loop is not None
                and self._iter >= self.val_begin and due)

    def _check(self) -> nn.Module:
        """The model, whose heads fit the data.

        Raises:
            ValueError: If they do not, or a task is drawn that cannot learn.
        """
        model, own = model_of(self.runner), self.dataloader.dataset.datasets
        for task, weight in self.weights.items():
            if weight and task not in model.learning:
                raise ValueError(
                    f"The task '{task}' is drawn, but those that learn are "
                    f'{model.learning}; name it in `model.learn_tasks`, or '
                    f'set `train_cfg.weights.{task}=0`.')
            if not weight or model.loss_weights[task]:
                continue
            mend = (f'set `model.loss_weights.{task}`, or '
                    f'`train_cfg.weights.{task}=0`.')
            said = (f"The task '{task}' is drawn, and its losses are "
                    'multiplied by 0, so its steps teach ')
            if model.routing is None:
                raise ValueError(f'{said}nothing; {mend}')
            # losses of routing have no weight of a task
            _warn(f'{said}routing alone; {mend}')
        check_heads(model, own, 'train_dataloader')
        validation = self.runner.val_loop
        if isinstance(validation, MultiTaskValLoop):
            validation.check()
            check_same_classes(own, validation.dataloader.dataset.datasets)
        return model


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)


class EachTask(BaseLoop):
    """Judge each task by its library's own loop, and report all at once.

    Metrics are named ``TASK/NAME``, such as ``det/coco/bbox_mAP``.

    Args:
        runner (Runner): The run.
        dataloader (Mapping[str, dict]): The ordinary loader of each task; None
            for one that is left out.
        evaluator (Mapping[str, dict | list]): The ordinary evaluator of each.
        fp16 (bool): Whether to compute in half precision. Defaults to False.

    Raises:
        ValueError: If a task, loader or data set does not fit.
    """

    stage: str
    ordinary: type

    def __init__(self,
                 runner: Runner,
                 dataloader: Mapping[str, dict],
                 evaluator: Mapping[str, Any],
                 fp16: bool = False) -> None:
        self.scopes = scopes_of(runner)
        what = f'{self.stage}_evaluator'
        evaluators = by_task(evaluator, self.scopes, what)
        loaders = build_loaders(runner, dataloader, self.scopes, self._what)
        for task in loaders.keys() ^ evaluators.keys():
            raise ValueError(f"`{self._what}` and `{what}` must leave out the "
                             f"same tasks; '{task}' is in one of them only.")
        super().__init__(runner, TaskLoaders(loaders))
        inner = _Inner(runner)
        self.loops = {}
        for task, loader in loaders.items():
            with DefaultScope.overwrite_default_scope(self.scopes[task]):
                self.loops[task] = self.ordinary(inner, loader,
                                                 evaluators[task], fp16)

    @property
    def _what(self) -> str:
        return f'{self.stage}_dataloader'

    def check(self) -> None:
        """Refuse data sets whose classes do not fit the model's heads.

        Raises:
            ValueError: If there is one.
        """
        check_heads(
            model_of(self.runner), self.dataloader.dataset.datasets,
            self._what)

    def run(self) -> dict:
        """The metrics of all tasks."""
        self.check()
        call, metrics = self.runner.call_hook, TaskMetrics()
        call(f'before_{self.stage}')
        call(f'before_{self.stage}_epoch')
        for task, loop in self.loops.items():
            select_task(self.runner.model, task)
            dataset = loop.dataloader.dataset
            if hasattr(dataset, 'metainfo'):
                self.runner.visualizer.dataset_meta = dataset.metainfo
            with DefaultScope.overwrite_default_scope(self.scopes[task]):
                metrics.add(task, loop.run())
        call(f'after_{self.stage}_epoch', metrics=metrics)
        call(f'after_{self.stage}')
        return metrics


@LOOPS.register_module()
class MultiTaskValLoop(EachTask):
    """See :class:`EachTask`."""

    stage = 'val'
    ordinary = ValLoop


@LOOPS.register_module()
class MultiTaskTestLoop(EachTask):
    """See :class:`EachTask`."""

    stage = 'test'
    ordinary = TestLoop


class TaskMetrics(dict):
    """The metrics of several tasks.

    What a task is to be judged by is None where its library gave no metric
    at all, as mmdet does for a detector that finds nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._without = []

    def add(self, task: str, metrics: Mapping[str, Any]) -> None:
        """Add those of a task, under names that begin with its own."""
        if not metrics:
            self._without.append(task)
        self.update({f'{task}/{key}': value for key, value in metrics.items()})

    def __missing__(self, key: str) -> None:
        if key.partition('/')[0] in self._without:
            return None
        raise KeyError(f"There is no metric '{key}'; there are {list(self)}.")


class _Inner:
    """A run as the loop of one of its tasks sees it: hooks hear of batches.

    Args:
        runner (Runner): The run.
    """

    def __init__(self, runner: Runner) -> None:
        self._outer = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outer, name)

    def call_hook(self, name: str, **kwargs: Any) -> None:
        """Call the hooks of a batch; those of an epoch are the run's."""
        if name.endswith('_iter'):
            self._outer.call_hook(name, **kwargs)

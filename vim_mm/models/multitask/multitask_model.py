# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from contextlib import contextmanager, nullcontext
from typing import (Any, Iterable, Iterator, List, Mapping, Optional, Sequence,
                    Set, Union)

from mmengine.model import BaseModel, ModuleDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import (check_by_task, check_is_config,
                                    check_is_list)
from vim_mm.utils.config import task_scopes
from ..moe.freezing import protect
from ..moe.statistics import saved_usage
from ..moe.surgery import grow, prefer_used
from ..recorder import tapping
from ..task_names import check_tasks, check_weights
from ..tasks import (TaskHolder, idle_in_all, learn_tasks, let_learn,
                     select_task)
from .building import (build_backbone, build_routing, build_task_model,
                       name_idle, with_backbone)
from .task_preprocessor import TaskPreprocessor


@MODELS.register_module()
class MultiTaskModel(TaskHolder, BaseModel):
    """Ordinary models of several libraries over one backbone.

    Each task's model is built from its own, unchanged config, whose backbone
    is left out. One task runs at a time: the one that a batch names, else the
    selected one.

    Args:
        backbone (dict): Config of the backbone. If its type takes ``tasks``
            and it names none, it gets those of the models.
        tasks (Mapping[str, dict]): Task names and configs of their models.
        loss_weights (Mapping[str, float], optional): What the losses of each
            task are multiplied by; 1 for all when None.
        routing (dict, optional): Config of :class:`MutualInformation`, which
            reads the routers of the backbone. Its losses are not multiplied
            by ``loss_weights``. Defaults to None.
        task (str, optional): The task to run; the first when None.
        learn_tasks (Sequence[str], optional): The tasks that learn, in all
            parts of the model; all when None.
        new_tasks (Mapping[str, dict], optional): Those of ``tasks`` that came
            after the backbone was trained, in order, each with the arguments
            of :func:`add_task` for its layers of experts. Tasks that do not
            learn then forget nothing, see :meth:`add_task`. Defaults to None.
        data_preprocessor: Not taken; each task's model has its own.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If a name, weight or config does not fit; the sentence
            names it.
    """

    def __init__(self,
                 backbone: Optional[dict] = None,
                 tasks: Optional[Mapping[str, dict]] = None,
                 loss_weights: Optional[Mapping[str, float]] = None,
                 routing: Optional[dict] = None,
                 task: Optional[str] = None,
                 learn_tasks: Optional[Sequence[str]] = None,
                 new_tasks: Optional[Mapping[str, dict]] = None,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        if not tasks:
            raise ValueError('`model.tasks` is empty; name a task and its '
                             'model.')
        if backbone is None:
            raise ValueError('`model.backbone` is missing; give the one that '
                             'the tasks share.')
        check_by_task(tasks, 'model.tasks')
        if data_preprocessor is not None:
            raise ValueError(
                'A MultiTaskModel takes no `data_preprocessor`; give each '
                'task its own, `model.tasks.NAME.data_preprocessor`.')
        super().__init__(TaskPreprocessor(self), init_cfg)
        scope = DefaultScope.get_current_instance()
        self.scopes = task_scopes(tasks, scope and scope.scope_name)
        new_tasks = new_tasks or {}
        check_by_task(new_tasks, 'model.new_tasks')
        check_tasks(new_tasks, list(tasks), '`model.tasks`')
        old = [task for task in tasks if task not in new_tasks]
        if not old:
            raise ValueError(f'`model.new_tasks` is {list(new_tasks)}, so all '
                             'tasks are new; leave the first ones out of it.')
        self.backbone = build_backbone(backbone, old)
        self.protects = bool(new_tasks)
        for name, added in new_tasks.items():
            check_is_config(added, f'model.new_tasks.{name}')
            grow(self.backbone, name, **added)
        self.models = ModuleDict()
        # what a model keeps frozen itself stays so, whatever learns
        self._frozen: Set[str] = set()
        for name, cfg in tasks.items():
            self._keep(
                name,
                build_task_model(name, cfg, self.scopes[name], self.backbone))
        self.loss_weights = check_weights(loss_weights, self.tasks,
                                          'model.loss_weights')
        self.routing = None if routing is None else build_routing(routing)
        if self.routing is not None:
            self.routing.bind(self.backbone, self.tasks)
        self._ran: Set[str] = set()
        self._prepare(task, learn_tasks)

    def _keep(self, name: str, model: BaseModel) -> None:
        self.models[name] = model
        self._frozen |= {
            f'{name}.{key}'
            for key, param in model.named_parameters()
            if not param.requires_grad
        }

    def _prepare(self, task: Optional[str],
                 learning: Optional[Sequence[str]]) -> None:
        try:
            for name in reversed(self.tasks):  # all parts know all of them
                select_task(self, name)
        except ValueError as error:
            raise ValueError(
                f'{str(error).rstrip(".")}: name all of `model.tasks` in the '
                '`tasks` of `model.backbone`, and those that came after it '
                'was trained in `model.new_tasks`.') from None
        name_idle(self.backbone, self.tasks)
        if task is not None:
            select_task(self, task)
        learn_tasks(self, self.tasks if learning is None else learning)

    # --------------------------------------------------------------- tasks

    @property
    def tasks(self) -> List[str]:
        """All tasks."""
        return list(self.models)

    def select_task(self, task: Optional[str]) -> None:
        """See :meth:`TaskHolder.select_task`."""
        task = self.tasks[0] if task is None else task
        check_tasks([task], self.tasks, 'the model')
        self.task = task

    def learn_tasks(self, tasks: Optional[Sequence[str]] = None) -> None:
        """See :meth:`TaskHolder.learn_tasks`."""
        tasks = [self.task] if tasks is None else tasks
        check_is_list(tasks, 'learn_tasks')
        check_tasks(tasks, self.tasks, 'the model')
        self.learning = list(dict.fromkeys(tasks))
        for name, param in self.models.named_parameters():
            learns = name.split('.')[0] in self.learning
            let_learn([param], learns and name not in self._frozen)
        if self.protects:
            others = [task for task in self.tasks if task not in tasks]
            protect(self.backbone, others)

    def add_task(self,
                 task: str,
                 model: dict,
                 loss_weight: float = 1.,
                 **experts: Any) -> None:
        """Add a task, which then learns and runs alone.

        From now on everything that tasks which do not learn use is frozen:
        shared layers, their experts, their routers. Their outputs stay the
        same, bit for bit, whatever the optimizer. Call it before optimizers,
        averaged copies and wrappers are built.

        Args:
            task (str): Its name.
            model (dict): Config of its model, as in ``tasks``.
            loss_weight (float): What its losses are multiplied by. Defaults
                to 1.
            **experts: See :func:`add_task` of layers of experts:
                ``num_experts``, ``like``.

        Raises:
            ValueError: If there is such a task, or a config does not fit.
        """
        if task in self.tasks:
            raise ValueError(f"There is a task '{task}' already; give another "
                             'name.')
        weights = check_weights({task: loss_weight}, [task], 'loss_weight')
        default = DefaultScope.get_current_instance()
        scopes = task_scopes({task: model}, default and default.scope_name)
        built = build_task_model(task, model, scopes[task], self.backbone)
        usage = None if self.routing is None else self.routing.usage()
        grow(self.backbone, task, usage, **experts)
        self._keep(task, built)
        self.scopes.update(scopes)
        self.loss_weights.update(weights)
        if self.routing is not None:
            self.routing.bind(self.backbone, self.tasks)
        self.protects = True
        select_task(self, task)
        learn_tasks(self, [task])

    def _load_from_state_dict(self, state_dict: dict, prefix: str,
                              *args: Any) -> None:
        prefer_used(self.backbone, saved_usage(state_dict), state_dict,
                    f'{prefix}backbone.')
        super()._load_from_state_dict(state_dict, prefix, *args)

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; the other models' parameters."""
        return [
            param for task in self.learning if task != self.task
            for param in self.models[task].parameters()
        ]

    def of(self, task: str) -> BaseModel:
        """The ordinary model of a task, with the backbone as its part.

        It holds the very tensors of this model, and runs the task's part of
        the backbone whichever task ran before.

        Args:
            task (str): Name of the task.

        Raises:
            ValueError: If there is no such task.
        """
        check_tasks([task], self.tasks, 'the model')
        return with_backbone(_inner(self.models[task]), self.backbone, task)

    @contextmanager
    def in_scope(self, task: str) -> Iterator[None]:
        """Within this context bare types are those of a task's library."""
        with DefaultScope.overwrite_default_scope(self.scopes[task]):
            yield

    def drop_idle_grads(self) -> None:
        """Forget the zero gradients of what no task has run since last time.

        An optimizer moves a parameter whose gradient is zero, by weight decay
        and momentum, but not one that has none. Called before every step.
        """
        if not self._ran:
            return
        for param in idle_in_all(self, self._ran, self.task):
            param.grad = None
        self._ran.clear()

    # ------------------------------------------------------------- running

    def forward(self,
                inputs: Any,
                data_samples: Optional[list] = None,
                mode: str = 'tensor',
                task: Optional[str] = None,
                **kwargs: Any) -> Any:
        """What the task's model makes of a batch.

        Args:
            inputs, data_samples, mode, **kwargs: See the task's model.
            task (str, optional): The task; the selected one when None.

        Returns:
            As of the task's model. Losses are weighted and their names begin
            with the task's, ``det/loss_cls``.
        """
        task = self.task if task is None else task
        select_task(self, task)  # all parts, whoever chose it
        model = self.models[task]
        # not as its part, and anew: wrappers put others in its place
        _inner(model).__dict__['backbone'] = self.backbone
        with self.in_scope(task):
            if mode != 'loss':
                return model(inputs, data_samples, mode=mode, **kwargs)
            with self._record() as seen, tapping(
                    dict(backbone=self.backbone)) as passes:
                losses = model(inputs, data_samples, mode=mode, **kwargs)
        losses = {
            key: self._weigh(value) if 'loss' in key else value
            for key, value in losses.items()
        }
        if self.routing is not None:
            losses.update(self.routing.loss(seen, task))
        self._ran.add(task)
        losses = {f'{task}/{key}': value for key, value in losses.items()}
        # maps that only other tasks read
        maps = tree_leaves([call.output for call in passes['backbone']])
        return self.with_idle(
            losses, *(leaf for leaf in maps if isinstance(leaf, Tensor)))

    def _record(self) -> Any:
        if self.routing is None:
            return nullcontext()
        return self.routing.record(self.backbone)

    def _weigh(self, loss: Union[Tensor, List[Tensor]]) -> Any:
        weight = self.loss_weights[self.task]
        if isinstance(loss, Tensor):
            return loss * weight
        return [part * weight for part in loss]


def _inner(model: nn.Module) -> BaseModel:
    """A task's model itself, where a strategy has wrapped it."""
    return next(part for part in model.modules()
                if isinstance(part, BaseModel))

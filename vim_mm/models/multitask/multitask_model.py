# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from typing import (Any, Iterable, Iterator, List, Mapping, Optional, Sequence,
                    Set, Union)

from mmengine.model import BaseModel, ModuleDict
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import arguments_of, check_is_config, check_is_list
from vim_mm.utils.config import class_of, task_scopes, type_name
from ..moe.freezing import protect
from ..moe.surgery import grow
from ..tasks import (TaskHolder, check_task_name, check_tasks, check_weights,
                     idle, learn_tasks, let_learn, select_task)
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
                 backbone: dict,
                 tasks: Mapping[str, dict],
                 loss_weights: Optional[Mapping[str, float]] = None,
                 routing: Optional[dict] = None,
                 task: Optional[str] = None,
                 learn_tasks: Optional[Sequence[str]] = None,
                 new_tasks: Optional[Mapping[str, dict]] = None,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        check_is_config(tasks, 'model.tasks')
        if not tasks:
            raise ValueError('`model.tasks` is empty; name a task and its '
                             'model.')
        if data_preprocessor is not None:
            raise ValueError(
                'A MultiTaskModel takes no `data_preprocessor`; give each '
                'task its own, `model.tasks.NAME.data_preprocessor`.')
        super().__init__(TaskPreprocessor(self), init_cfg)
        scope = DefaultScope.get_current_instance()
        self.scopes = task_scopes(tasks, scope and scope.scope_name)
        new_tasks = new_tasks or {}
        check_tasks(new_tasks, list(tasks), '`model.tasks`')
        old = [task for task in tasks if task not in new_tasks]
        if not old:
            raise ValueError(f'`model.new_tasks` is {list(new_tasks)}, so all '
                             'tasks are new; leave the first ones out of it.')
        self.backbone = MODELS.build(_for_tasks(backbone, old))
        self.protects = bool(new_tasks)
        for name, added in new_tasks.items():
            grow(self.backbone, name, **added)
        self.models = ModuleDict()
        # what a model keeps frozen itself stays so, whatever learns
        self._frozen: Set[str] = set()
        for name, cfg in tasks.items():
            self._keep(name, self._build(name, cfg, self.scopes[name]))
        self.loss_weights = check_weights(loss_weights, self.tasks,
                                          'model.loss_weights')
        self.routing = None if routing is None else MODELS.build(routing)
        if self.routing is not None:
            self.routing.bind(self.backbone, self.tasks)
        self._ran: Set[str] = set()
        self._prepare(task, learn_tasks)

    def _build(self, name: str, cfg: dict, scope: Optional[str]) -> BaseModel:
        """A task's model, which holds the backbone, but not as a part."""
        check_task_name(name)
        if 'loss' in name:
            raise ValueError(f"'{name}' cannot name a task: what is logged "
                             "with 'loss' in its name is added to the loss; "
                             'use another name.')
        what = f'model.tasks.{name}'
        check_is_config(cfg, what)
        cfg = deepcopy(cfg)
        with DefaultScope.overwrite_default_scope(scope):
            kind = class_of(cfg, MODELS)
            if kind and 'backbone' not in arguments_of(kind):
                raise ValueError(f'`{what}` is a {type_name(cfg)}, which has '
                                 'no backbone; give a plain model.')
            if scope != 'mmpretrain':
                # elsewhere it names the weights of the backbone
                cfg.pop('pretrained', None)
            cfg['backbone'] = dict(type=_itself, module=self.backbone)
            model = MODELS.build(cfg)
        model._modules.pop('backbone')
        return model

    def _keep(self, name: str, model: BaseModel) -> None:
        self.models[name] = model
        self._frozen |= {
            f'{name}.{key}'
            for key, param in model.named_parameters()
            if not param.requires_grad
        }

    def _prepare(self, task: Optional[str],
                 learning: Optional[Sequence[str]]) -> None:
        for name in reversed(self.tasks):  # all parts know all of them
            select_task(self, name)
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
        built = self._build(task, model, scopes[task])
        grow(self.backbone, task, **experts)
        self._keep(task, built)
        self.scopes.update(scopes)
        self.loss_weights.update(weights)
        if self.routing is not None:
            self.routing.bind(self.backbone, self.tasks)
        self.protects = True
        select_task(self, task)
        learn_tasks(self, [task])

    def idle(self) -> Iterable[Tensor]:
        """See :meth:`TaskHolder.idle`; the other models' parameters."""
        return [
            param for task in self.learning if task != self.task
            for param in self.models[task].parameters()
        ]

    def of(self, task: str) -> BaseModel:
        """The ordinary model of a task, with the backbone as its part.

        It holds the very tensors of this model.

        Args:
            task (str): Name of the task.

        Raises:
            ValueError: If there is no such task.
        """
        check_tasks([task], self.tasks, 'the model')
        model = copy(_inner(self.models[task]))
        model.__dict__.pop('backbone', None)
        model._modules = {'backbone': self.backbone, **model._modules}
        return model

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
        last, left = self.task, None
        for task in self._ran:
            if task != self.task:
                select_task(self, task)
            found = {id(param): param for param in idle(self)}
            left = found if left is None else {
                key: param
                for key, param in left.items() if key in found
            }
        if last != self.task:
            select_task(self, last)
        for param in left.values():
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
        if task is not None:
            select_task(self, task)
        task, model = self.task, self.models[self.task]
        # not as its part, and anew: wrappers put others in its place
        _inner(model).__dict__['backbone'] = self.backbone
        with self.in_scope(task):
            if mode != 'loss':
                return model(inputs, data_samples, mode=mode, **kwargs)
            maps: List[Any] = []
            with self._record() as seen, _outputs(self.backbone, maps):
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
        return self.with_idle(
            losses,
            *(leaf for leaf in tree_leaves(maps) if isinstance(leaf, Tensor)))

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


# ------------------------------------------------------------------ configs


def _itself(module: nn.Module) -> nn.Module:
    """Stands as a type where a module takes the config of a part."""
    return module


@contextmanager
def _outputs(module: nn.Module, found: List[Any]) -> Iterator[None]:
    """Within this context the outputs of a module are gathered."""
    handle = module.register_forward_hook(
        lambda _, inputs, outputs: found.append(outputs))
    try:
        yield
    finally:
        handle.remove()


def _for_tasks(backbone: dict, tasks: List[str]) -> dict:
    """Config of a backbone that knows the tasks, if its type tells them."""
    check_is_config(backbone, 'model.backbone')
    if backbone.get('learn_tasks') is not None:
        raise ValueError('`model.backbone.learn_tasks` is that of the whole '
                         'model here; set `model.learn_tasks`.')
    kind = class_of(backbone, MODELS)
    if (kind is None or 'tasks' not in arguments_of(kind)
            or backbone.get('tasks') is not None):
        return backbone
    backbone = copy(backbone)
    backbone['tasks'] = tasks
    return backbone

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from abc import ABCMeta, abstractmethod
from typing import Dict, List, Mapping, Optional, Sequence, Union

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.registry import MODELS

Tasks = Union[Sequence[str], Mapping[str, Sequence[str]]]


class BaseFusion(BaseModule, metaclass=ABCMeta):
    """How K modules are weighted, for several named tasks.

    A task knows the modules that were in the bank when it was made and keeps
    to them: a module that joins later cannot change its output.

    Class attributes:
        merges (bool): Whether weights apply to the modules' parameters,
            giving one module, rather than to their outputs.

    Args:
        modules (Sequence[str]): All modules that can be fused, in order.
        num_slots (int): Number of places S with weights of their own: layers
            x branches inside a trunk, levels of a pyramid in a neck.
        tasks (Sequence[str] | Mapping[str, Sequence[str]]): Task names, each
            over all modules, or a mapping from task names to the modules
            each task knows. Defaults to ``('default', )``.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If a task names a module that is not there, or none.
    """

    merges = False

    def __init__(self,
                 modules: Sequence[str],
                 num_slots: int,
                 tasks: Tasks = ('default', ),
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_slots = num_slots
        self.task_modules: Dict[str, List[str]] = {}
        if not isinstance(tasks, Mapping):
            tasks = {task: modules for task in tasks}
        for task, names in tasks.items():
            unknown = sorted(set(names) - set(modules))
            if unknown or not names:
                raise ValueError(
                    f"Task '{task}' asks for the modules {unknown or 'none'},"
                    f' but the bank holds {list(modules)}; name those in '
                    '`fusion.tasks`.')
            self._register(task, names)

    @property
    def tasks(self) -> List[str]:
        """The names of all tasks."""
        return list(self.task_modules)

    def add_task(self, task: str, modules: Sequence[str]) -> None:
        """Add a task over ``modules``; other tasks are not touched.

        Raises:
            ValueError: If the name is taken or not allowed.
        """
        self._register(task, modules)

    def _register(self, task: str, modules: Sequence[str]) -> None:
        if task in self.task_modules:
            raise ValueError(f"There is a task '{task}' already; choose "
                             'another name.')
        # parameters are kept under task names, beside their dict's methods
        if not task or '.' in task or hasattr(nn.ParameterDict(), task):
            raise ValueError(f"'{task}' cannot name a task; use a name "
                             'without dots that is no torch method name.')
        self.task_modules[task] = list(modules)

    def select(self, task: str) -> None:
        """Make ``task`` the only one whose weights may be learned.

        Unused parameters would stall a data-parallel backward.

        Raises:
            ValueError: If there is no such task.
        """
        if task not in self.task_modules:
            raise ValueError(f"There is no task '{task}'; the fusion knows "
                             f'{self.tasks}.')

    @abstractmethod
    def gates(self, task: str) -> Tensor:
        """The weights of a task.

        Returns:
            Tensor: Shape (S, N), N the number of modules the task knows.
        """

    def row(self, gates: Tensor, slot_index: int, x: Tensor) -> Tensor:
        """The weights of one slot, perhaps different for every picture.

        Args:
            gates (Tensor): What :meth:`gates` returned for this pass.
            slot_index (int): Index of the slot.
            x (Tensor): Tokens the slot reads, (B, L, C).

        Returns:
            Tensor: Shape (N, ), or (B, N).
        """
        return gates[slot_index]


def build_fusion(cfg: dict, modules: Sequence[str],
                 num_slots: int) -> BaseFusion:
    """Build a fusion; a bare type is ours, whatever scope the run has."""
    kind = str(cfg.get('type')).replace('vim_mm.', '', 1)
    if '.' not in kind and kind not in MODELS.module_dict:
        known = sorted(
            name for name, value in MODELS.module_dict.items()
            if isinstance(value, type) and issubclass(value, BaseFusion))
        raise ValueError(f"'{kind}' is no kind of fusion; known are {known}.")
    given = dict(modules=modules, num_slots=num_slots)
    return MODELS.build({'_scope_': 'vim_mm', **cfg, **given})


@MODELS.register_module()
class EnsMoE(BaseFusion):
    """Ens-MoE of ViM: a softmax over learned logits, per task and slot.

    ``g = softmax over the top-k entries of a, 0 elsewhere`` and
    ``ViM(z) = sum_i g_i M_i(z)``, with one input-independent logit vector
    ``a`` per task, layer and branch (ViM, arXiv 2303.06911).

    Args:
        modules, num_slots, tasks, init_cfg: See :class:`BaseFusion`.
        top_k (int, optional): Number of modules that take part; all when
            None, "MoE-full". Defaults to None.
        learn (bool): Whether logits are trained. Defaults to True.

    Raises:
        ValueError: If ``top_k`` is smaller than one.
    """

    def __init__(self,
                 modules: Sequence[str],
                 num_slots: int,
                 tasks: Tasks = ('default', ),
                 top_k: Optional[int] = None,
                 learn: bool = True,
                 init_cfg: Optional[dict] = None) -> None:
        if top_k is not None and top_k < 1:
            raise ValueError(f'top_k={top_k} leaves no module; use at least '
                             '1, or None for all.')
        super().__init__(modules, num_slots, tasks, init_cfg)
        self.top_k = top_k
        self.learn = learn
        self.logits = nn.ParameterDict()
        self._register_load_state_dict_pre_hook(self._align_columns)
        for task in self.tasks:
            self._start(task)

    def add_task(self, task: str, modules: Sequence[str]) -> None:
        """Add a task with zero logits: uniform gates."""
        super().add_task(task, modules)
        self._start(task)

    def _start(self, task: str) -> None:
        shape = (self.num_slots, len(self.task_modules[task]))
        # a task that joins later starts where the others are, on their device
        like = next(iter(self.logits.values()), torch.zeros(()))
        self.logits[task] = nn.Parameter(
            like.new_zeros(shape), requires_grad=self.learn)
        # a checkpoint says which module each weight belongs to
        names = list('/'.join(self.task_modules[task]).encode())
        self.register_buffer(
            f'modules_of_{task}',
            torch.tensor(names, dtype=torch.uint8, device=like.device))

    def _align_columns(self, state_dict: dict, prefix: str, *_) -> None:
        """Put a checkpoint's weights into this model's order of modules."""
        for task, modules in self.task_modules.items():
            stored = state_dict.get(f'{prefix}modules_of_{task}')
            if stored is None:
                continue
            names = bytes(stored.tolist()).decode().split('/')
            if sorted(names) != sorted(modules):
                raise ValueError(
                    f"The checkpoint's task '{task}' weighs the modules "
                    f'{names}, this model {modules}; name the same ones in '
                    '`model.backbone.modules` or `fusion.tasks`.')
            state_dict[f'{prefix}modules_of_{task}'] = getattr(
                self, f'modules_of_{task}')
            order = [names.index(module) for module in modules]
            key = f'{prefix}logits.{task}'
            state_dict[key] = state_dict[key][:, order]

    def select(self, task: str) -> None:
        """See :meth:`BaseFusion.select`."""
        super().select(task)
        for name, logits in self.logits.items():
            logits.requires_grad_(self.learn and name == task)

    @torch.no_grad()
    def set_logits(self, task: str, logits: Tensor) -> None:
        """Start a task's gates from given logits.

        Args:
            task (str): Name of the task.
            logits (Tensor): Shape (N, ), the same for all slots, or (S, N).
        """
        self.logits[task].copy_(logits.expand_as(self.logits[task]))

    def gates(self, task: str) -> Tensor:
        """See :meth:`BaseFusion.gates`; every row sums to one."""
        logits = self.logits[task]
        if self.top_k is None or self.top_k >= logits.shape[1]:
            return logits.softmax(dim=1)
        top, index = logits.topk(self.top_k, dim=1)
        return torch.zeros_like(logits).scatter(1, index, top.softmax(dim=1))


@MODELS.register_module()
class ParameterMerge(EnsMoE):
    """One module whose parameters are the gated sum of all modules'.

    ``W = sum_i g_i W_i`` and ``b = sum_i g_i b_i``, then a single adapter
    runs. It costs as much as one module, needs modules of one kind and width,
    and is another function than the ensemble of :class:`EnsMoE`: adapters are
    not linear. The release of ViM holds this form as unused code. Arguments
    are those of :class:`EnsMoE`.
    """

    merges = True


@MODELS.register_module()
class FixedFusion(BaseFusion):
    """Given weights, the same in every slot, never learned.

    Args:
        modules, num_slots, tasks, init_cfg: See :class:`BaseFusion`.
        weights (Mapping[str, float], optional): Weight of each module; need
            not sum to one, absent modules weigh zero. Uniform, 1 / N, when
            None. Defaults to None.
    """

    def __init__(self,
                 modules: Sequence[str],
                 num_slots: int,
                 tasks: Tasks = ('default', ),
                 weights: Optional[Mapping[str, float]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(modules, num_slots, tasks, init_cfg)
        unknown = sorted(set(weights or ()) - set(modules))
        if unknown:
            raise ValueError(f'Weights are given for {unknown}, but the bank '
                             f'holds {list(modules)}.')
        self.weights = None if weights is None else dict(weights)
        # follows the model to its device; nothing to save
        self.register_buffer('_one', torch.ones(()), persistent=False)

    def gates(self, task: str) -> Tensor:
        """See :meth:`BaseFusion.gates`."""
        names = self.task_modules[task]
        if self.weights is None:
            row = [1 / len(names)] * len(names)
        else:
            row = [self.weights.get(name, 0.) for name in names]
        return self._one.new_tensor(row).expand(self.num_slots, -1)

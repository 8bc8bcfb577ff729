# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from abc import abstractmethod
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor, nn

from .base_fusion import BaseFusion, Occupied, Tasks


class LearnedFusion(BaseFusion):
    """Fusions that learn one number per task, slot and module.

    A task's numbers are ``logits[task]``, of shape (S, C): a row for each of
    the task's S slots, a column for each of its N modules, and perhaps more
    that belong to none. Checkpoints name modules and slots, so they load
    whatever order these have. All weights of a task are multiplied by its
    ``strengths[task]``, which is one unless :meth:`set_weights` says
    otherwise, and does not learn. At zero the task is off: no module runs, and
    its numbers do not learn.

    Args:
        modules, tasks, init_cfg: See :class:`BaseFusion`.
        learn (bool): Whether they are trained. Defaults to True.
    """

    #: Which parameters have a dimension over modules, and which of their two
    #: it is; the other is over slots.
    module_dims: Dict[str, int] = dict(logits=1)

    def __init__(self,
                 modules: Occupied,
                 tasks: Tasks = ('default', ),
                 learn: bool = True,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(modules, tasks, init_cfg)
        self.learn = learn
        self.strengths: Dict[str, float] = {}
        for name in self.module_dims:
            setattr(self, name, nn.ParameterDict())
        self._register_load_state_dict_pre_hook(self._align)
        for task in self.tasks:
            self._start(task)

    def add_task(self, task: str, modules: Occupied) -> None:
        """Add a task that starts as all tasks do."""
        super().add_task(task, modules)
        self._start(task)

    def start_values(self, task: str) -> Dict[str, Tensor]:
        """What a task's parameters start from, by names of module_dims."""
        shape = (len(self.task_slots[task]), len(self.task_modules[task]))
        return dict(logits=torch.zeros(shape))

    def slot_sizes(self, task: str) -> Dict[str, List[int]]:
        """How many entries each of a task's slots has in each parameter."""
        return dict(logits=[1] * len(self.task_slots[task]))

    def _start(self, task: str) -> None:
        # a task that joins later goes where the others are
        like = next(iter(self.logits.values()), torch.zeros(()))
        for name, value in self.start_values(task).items():
            getattr(self, name)[task] = nn.Parameter(
                value.to(like),
                requires_grad=self.learn and task in self.learning)
        # a checkpoint says which module and slot each number belongs to
        for what in ('modules', 'slots'):
            names = '/'.join(getattr(self, f'task_{what}')[task]).encode()
            self.register_buffer(
                f'{what}_of_{task}',
                torch.tensor(
                    list(names), dtype=torch.uint8, device=like.device))
        self.strengths[task] = 1.
        self.register_buffer(f'strength_of_{task}',
                             torch.ones((), device=like.device))

    def _align(self, state_dict: dict, prefix: str, *_) -> None:
        """Put a checkpoint's numbers into this model's order."""
        self.changes += 1
        for task in self.tasks:
            self._read_strength(state_dict, prefix, task)
            stored = {
                name: state_dict[f'{prefix}{name}.{task}']
                for name in self.module_dims
                if f'{prefix}{name}.{task}' in state_dict
            }
            if not stored:
                continue
            modules = self._stored(state_dict, prefix, 'modules', task)
            slots = self._stored(state_dict, prefix, 'slots', task)
            for name, value in stored.items():
                dim = self.module_dims[name]
                own = getattr(self, name)[task]
                if value.shape != own.shape:  # mmengine would only warn
                    raise ValueError(
                        f"The checkpoint's task '{task}' has {name} of shape "
                        f'{tuple(value.shape)}, this model of '
                        f'{tuple(own.shape)}: they differ in slots or in '
                        'settings of the fusion. Give the task a config of '
                        'its own, as it was trained.')
                # what belongs to no module stays behind the modules
                rest = range(len(modules), value.shape[dim])
                index = torch.tensor([*modules, *rest], device=value.device)
                value = value.index_select(dim, index)
                sizes = self.slot_sizes(task)[name]
                sizes = [sizes[slots.index(i)] for i in range(len(slots))]
                pieces = value.split(sizes, dim=1 - dim)
                state_dict[f'{prefix}{name}.{task}'] = torch.cat(
                    [pieces[place] for place in slots], dim=1 - dim)

    def _read_strength(self, state_dict: dict, prefix: str,
                       task: str) -> None:
        """Take over a task's strength; checkpoints of before have one."""
        key = f'{prefix}strength_of_{task}'
        if f'{prefix}logits.{task}' in state_dict:
            state_dict.setdefault(key, torch.ones(()))
        if key in state_dict:
            self.strengths[task] = float(state_dict[key])

    def _stored(self, state_dict: dict, prefix: str, what: str,
                task: str) -> List[int]:
        """Where a task's modules or slots stand in a checkpoint.

        Raises:
            ValueError: If the checkpoint names others, or none.
        """
        own = list(getattr(self, f'task_{what}')[task])
        key = f'{prefix}{what}_of_{task}'
        if key not in state_dict:
            raise ValueError(
                f"The checkpoint's task '{task}' does not say which {what} "
                f"its weights belong to ('{key}' is missing); save it with "
                'the whole state of its fusion.')
        names = bytes(state_dict[key].tolist()).decode().split('/')
        if sorted(names) != sorted(own):
            differ = sorted(set(names) ^ set(own))
            raise ValueError(
                f"The checkpoint's task '{task}' weighs other {what} than "
                f'this model: {names} there, {own} here, which differ in '
                f'{differ}; name the same modules, in the slots they were '
                'trained in, in `model.backbone.modules` or `fusion.tasks`.')
        state_dict[key] = getattr(self, f'{what}_of_{task}')
        return [names.index(name) for name in own]

    def learn_tasks(self, tasks: Sequence[str]) -> None:
        """See :meth:`BaseFusion.learn_tasks`; none if not to ``learn``."""
        super().learn_tasks(tasks)
        self.changes += 1
        for task in self.tasks:
            for param in self.parameters_of(task):
                param.requires_grad_(self.learn and task in self.learning)

    def parameters_of(self, task: str) -> List[nn.Parameter]:
        """See :meth:`BaseFusion.parameters_of`."""
        return [getattr(self, name)[task] for name in self.module_dims]

    @torch.no_grad()
    def set_logits(self, task: str, logits: Tensor) -> None:
        """Start a task's gates from given logits.

        Args:
            task (str): Name of the task.
            logits (Tensor): Shape (N, ), the same for all slots, or (S, N).
        """
        self.logits[task].copy_(logits.expand_as(self.logits[task]))
        self.changes += 1

    def set_strength(self, task: str, strength: float) -> None:
        """Multiply all weights of a task; zero turns it off."""
        self.strengths[task] = float(strength)
        getattr(self, f'strength_of_{task}').fill_(strength)
        self.changes += 1

    def turn_off(self, task: str) -> None:
        """Weigh no module of a task; its numbers are as at first."""
        self.set_strength(task, 0.)
        self.set_logits(task,
                        self.start_values(task)['logits'].to(
                            self.logits[task]))

    @abstractmethod
    def set_weights(self, task: str, weights: Tensor) -> None:
        """Start a task's gates at given weights.

        Args:
            task (str): Name of the task.
            weights (Tensor): Shape (N, ), the same for all slots, not
                negative. If all are zero, the task is off.
        """

    def most(self, task: str) -> int:
        """How many modules of a task can weigh something at once."""
        return len(self.task_modules[task])

    @abstractmethod
    def learned_gates(self, task: str) -> Tensor:
        """The weights of a task, (S, N), at a strength of one."""

    def gates(self, task: str) -> Tensor:
        """See :meth:`BaseFusion.gates`."""
        if self.is_off(task):
            return self.logits[task].new_zeros(
                len(self.task_slots[task]), len(self.task_modules[task]))
        return self.scaled(task, self.learned_gates(task))

    def scaled(self, task: str, gates: Tensor) -> Tensor:
        """Gates at a task's strength."""
        strength = self.strengths[task]
        return gates if strength == 1 else gates * strength

    def is_off(self, task: str) -> bool:
        """See :meth:`BaseFusion.is_off`."""
        return self.strengths[task] == 0

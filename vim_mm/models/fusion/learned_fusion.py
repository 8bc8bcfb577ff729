# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional, Sequence

import torch
from torch import Tensor, nn

from .base_fusion import BaseFusion, Tasks


class LearnedFusion(BaseFusion):
    """Fusions that learn one number per task, slot and module.

    A task's numbers are ``logits[task]``, of shape (S, C): a column for each
    of the task's N modules, and perhaps more that belong to none. Checkpoints
    name the modules, so they load whatever order the modules have.

    Args:
        modules, num_slots, tasks, init_cfg: See :class:`BaseFusion`.
        learn (bool): Whether they are trained. Defaults to True.
    """

    #: Which parameters have a dimension over modules, and which it is.
    module_dims: Dict[str, int] = dict(logits=1)

    def __init__(self,
                 modules: Sequence[str],
                 num_slots: int,
                 tasks: Tasks = ('default', ),
                 learn: bool = True,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(modules, num_slots, tasks, init_cfg)
        self.learn = learn
        for name in self.module_dims:
            setattr(self, name, nn.ParameterDict())
        self._register_load_state_dict_pre_hook(self._align_modules)
        for task in self.tasks:
            self._start(task)

    def add_task(self, task: str, modules: Sequence[str]) -> None:
        """Add a task that starts as all tasks do."""
        super().add_task(task, modules)
        self._start(task)

    def start_values(self, task: str) -> Dict[str, Tensor]:
        """What a task's parameters start from, by names of module_dims."""
        shape = (self.num_slots, len(self.task_modules[task]))
        return dict(logits=torch.zeros(shape))

    def _start(self, task: str) -> None:
        # a task that joins later goes where the others are
        like = next(iter(self.logits.values()), torch.zeros(()))
        for name, value in self.start_values(task).items():
            getattr(self, name)[task] = nn.Parameter(
                value.to(like), requires_grad=self.learn)
        # a checkpoint says which module each weight belongs to
        names = list('/'.join(self.task_modules[task]).encode())
        self.register_buffer(
            f'modules_of_{task}',
            torch.tensor(names, dtype=torch.uint8, device=like.device))

    def _align_modules(self, state_dict: dict, prefix: str, *_) -> None:
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
            for name, dim in self.module_dims.items():
                key = f'{prefix}{name}.{task}'
                if key in state_dict:
                    value = state_dict[key]
                    # what belongs to no module stays behind the modules
                    rest = range(len(names), value.shape[dim])
                    index = torch.tensor([*order, *rest], device=value.device)
                    value = value.index_select(dim, index)
                    own = getattr(self, name)[task]
                    if value.shape != own.shape:  # mmengine would only warn
                        raise ValueError(
                            f"The checkpoint's task '{task}' has {name} of "
                            f'shape {tuple(value.shape)}, this model of '
                            f'{tuple(own.shape)}: its modules sit in other '
                            'slots. Give the task a config of its own, with '
                            'the modules and slots it was trained with.')
                    state_dict[key] = value

    def select(self, task: str) -> None:
        """See :meth:`BaseFusion.select`."""
        super().select(task)
        for name in self.module_dims:
            for owner, param in getattr(self, name).items():
                param.requires_grad_(self.learn and owner == task)

    @torch.no_grad()
    def set_logits(self, task: str, logits: Tensor) -> None:
        """Start a task's gates from given logits.

        Args:
            task (str): Name of the task.
            logits (Tensor): Shape (N, ), the same for all slots, or (S, N).
        """
        self.logits[task].copy_(logits.expand_as(self.logits[task]))

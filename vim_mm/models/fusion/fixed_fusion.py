# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import math
from typing import Mapping, Optional

import torch
from torch import Tensor

from vim_mm.registry import MODELS
from .base_fusion import BaseFusion, Occupied, Tasks


@MODELS.register_module()
class FixedFusion(BaseFusion):
    """Given weights, the same in every slot, never learned.

    Args:
        modules, tasks, init_cfg: See :class:`BaseFusion`.
        weights (Mapping[str, float], optional): Weight of each module; need
            not sum to one, absent modules weigh zero. Uniform, 1 / N, when
            None. Defaults to None.

    Raises:
        ValueError: If they are no finite numbers by names of modules.
    """

    def __init__(self,
                 modules: Occupied,
                 tasks: Tasks = ('default', ),
                 weights: Optional[Mapping[str, float]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(modules, tasks, init_cfg)
        if weights is not None and not isinstance(weights, Mapping):
            raise ValueError(f'`weights` is {weights}; name the modules, such '
                             f'as dict({next(iter(modules))}=1.).')
        unknown = sorted(set(weights or ()) - set(modules))
        if unknown:
            raise ValueError(f'Weights are given for {unknown}, but the bank '
                             f'holds {list(modules)}.')
        if not all(map(math.isfinite, (weights or {}).values())):
            raise ValueError(f'`weights` is {dict(weights)}; give finite '
                             'numbers.')
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
        slots = len(self.task_slots[task])
        return self._one.new_tensor(row).expand(slots, -1)


@MODELS.register_module()
class FixedMerge(FixedFusion):
    """One module whose parameters are the sum of all, by given weights.

    To :class:`FixedFusion` what :class:`ParameterMerge` is to
    :class:`EnsMoE`. Arguments are those of :class:`FixedFusion`.
    """

    merges = True

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import math
from typing import Dict, Iterable, Mapping, Optional, Union

import torch
from torch import Tensor

from vim_mm.registry import MODELS
from .base_fusion import BaseFusion, Occupied, Tasks

Weights = Union[Mapping[str, float], Mapping[str, Mapping[str, float]]]


@MODELS.register_module()
class FixedFusion(BaseFusion):
    """Given weights, never learned.

    Args:
        modules, tasks, init_cfg: See :class:`BaseFusion`.
        weights (Mapping, optional): Weight of each module, the same in every
            slot; or such a mapping for every slot, as :meth:`named_gates`
            gives. They need not sum to one, absent modules and slots weigh
            zero. Uniform, 1 / N, when None. Defaults to None.

    Raises:
        ValueError: If they are no finite numbers by names of modules, or of
            slots and modules.
    """

    def __init__(self,
                 modules: Occupied,
                 tasks: Tasks = ('default', ),
                 weights: Optional[Weights] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(modules, tasks, init_cfg)
        if weights is not None and not isinstance(weights, Mapping):
            raise ValueError(f'`weights` is {weights}; name the modules, such '
                             f'as dict({next(iter(modules))}=1.).')
        values = list((weights or {}).values())
        by_slot = [isinstance(value, Mapping) for value in values]
        self.by_slot = any(by_slot)
        if self.by_slot and not all(by_slot):
            raise ValueError(f'`weights` is {dict(weights)}; give weights by '
                             'module, or by slot and module, not both.')
        rows = values if self.by_slot else [weights or {}]
        if self.by_slot:
            slots = [slot for occupied in modules.values()
                     for slot in occupied]
            _check_names(weights, dict.fromkeys(slots), 'the modules sit in')
        for row in rows:
            _check_names(row, modules, 'the bank holds')
            if not all(map(math.isfinite, row.values())):
                raise ValueError(f'`weights` is {dict(weights)}; give finite '
                                 'numbers.')
        self.weights = None if weights is None else dict(weights)
        # follows the model to its device; nothing to save
        self.register_buffer('_one', torch.ones(()), persistent=False)

    def function_settings(self) -> Dict[str, dict]:
        """See :meth:`BaseFusion.function_settings`."""
        said = super().function_settings()['']
        return {'': dict(said, weights=self.weights)}

    def sums_to_one(self, task: str) -> bool:
        """See :meth:`BaseFusion.sums_to_one`."""
        return self.weights is None

    def gates(self, task: str) -> Tensor:
        """See :meth:`BaseFusion.gates`."""
        names, slots = self.task_modules[task], self.task_slots[task]
        weights = self.weights
        if weights is None:
            weights = dict.fromkeys(names, 1 / len(names))
        if not self.by_slot:
            weights = dict.fromkeys(slots, weights)
        return self._one.new_tensor([[
            weights.get(slot, {}).get(name, 0.) for name in names
        ] for slot in slots])


def _check_names(given: Iterable[str], known: Iterable[str],
                 where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f'Weights are given for {unknown}, but {where} '
                         f'{list(known)}.')


@MODELS.register_module()
class FixedMerge(FixedFusion):
    """One module whose parameters are the sum of all, by given weights.

    To :class:`FixedFusion` what :class:`ParameterMerge` is to
    :class:`EnsMoE`. Arguments are those of :class:`FixedFusion`.
    """

    merges = True

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict

import torch
from torch import Tensor

from vim_mm.registry import MODELS
from .learned_fusion import LearnedFusion


@MODELS.register_module()
class LinearMoE(LearnedFusion):
    """Learned weights that need not sum to one: ``g = a``. Ours.

    A softmax divides K modules' outputs by K in all, although each was
    trained at weight one. Here two good modules can both have weight one, and
    a module can be switched off, or subtracted. Weights start at 1 / N, where
    a fresh :class:`EnsMoE` starts.

    Arguments are those of :class:`LearnedFusion`.
    """

    def function_settings(self) -> Dict[str, dict]:
        """See :meth:`BaseFusion.function_settings`."""
        return {'': dict(super().function_settings()[''], numbers='weights')}

    def start_values(self, task: str) -> Dict[str, Tensor]:
        """Uniform weights, 1 / N."""
        slots, num = len(self.task_slots[task]), len(self.task_modules[task])
        return dict(logits=torch.full((slots, num), 1 / num))

    def set_weights(self, task: str, weights: Tensor) -> None:
        """See :meth:`LearnedFusion.set_weights`."""
        if not weights.any():
            return self.turn_off(task)
        self.set_strength(task, 1.)
        self.set_logits(task, weights)

    def learned_gates(self, task: str) -> Tensor:
        """See :meth:`LearnedFusion.learned_gates`; the numbers themselves."""
        return self.logits[task]

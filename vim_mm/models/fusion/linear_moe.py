# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Any, Dict, Sequence

import torch
from torch import Tensor

from vim_mm.registry import MODELS
from .base_fusion import Occupied
from .learned_fusion import LearnedFusion


@MODELS.register_module()
class LinearMoE(LearnedFusion):
    """Learned weights that need not sum to one: ``g = a``. Ours.

    A softmax divides K modules' outputs by K in all, although each was
    trained at weight one. Here two good modules can both have weight one, and
    a module can be switched off, or subtracted. Weights start at 1 / N, where
    a fresh :class:`EnsMoE` starts, or from scores.

    Args:
        modules (Mapping[str, Mapping[str, int]]): See :class:`BaseFusion`.
        ranks (Sequence[float]): The weights that scores start from: that of
            the best module, of the second best and so on; 0 for those that
            come after. Few-shot scores tell the good modules from the others
            better than how much better they are. Defaults to ``(1., 0.25)``.
        **kwargs: As for :class:`LearnedFusion`.

    Raises:
        ValueError: If ``ranks`` is empty or no list.
    """

    def __init__(self,
                 modules: Occupied,
                 *,
                 ranks: Sequence[float] = (1., 0.25),
                 **kwargs: Any) -> None:
        if not isinstance(ranks, Sequence) or not ranks:
            raise ValueError(f'`ranks` is {ranks}; give LinearMoE a list that '
                             'begins with the weight the best module starts '
                             'at.')
        self.ranks = list(ranks)
        super().__init__(modules, **kwargs)

    def start_values(self, task: str) -> Dict[str, Tensor]:
        """Uniform weights, 1 / N."""
        slots, num = len(self.task_slots[task]), len(self.task_modules[task])
        return dict(logits=torch.full((slots, num), 1 / num))

    def set_scores(self, task: str, scores: Tensor,
                   temperature: float) -> None:
        """See :meth:`LearnedFusion.set_scores`; by rank alone."""
        best = scores.argsort(descending=True, stable=True)[:len(self.ranks)]
        weights = torch.zeros_like(scores)
        weights[best] = weights.new_tensor(self.ranks[:len(best)])
        self.set_logits(task, weights)

    def gates(self, task: str) -> Tensor:
        """See :meth:`BaseFusion.gates`; the learned numbers themselves."""
        return self.logits[task]

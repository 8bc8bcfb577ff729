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
            come after. Defaults to ``(1., 0.25)``. See :meth:`set_scores`.
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
        """See :meth:`LearnedFusion.set_scores`; by rank alone.

        Few-shot scores tell good modules from others better than how much
        better they are. But where all score alike, their order is chance, and
        another judgement ranks them anew. So a module starts from the mean of
        the weights that its ranks deserve, over the judgements: one that is
        always the best at ``ranks[0]``, N of which none is better at
        ``sum(ranks) / N`` each. Modules that tie share the ranks they take.
        """
        ahead = (scores[:, None] > scores[:, :, None]).sum(2)
        upto = (scores[:, None] >= scores[:, :, None]).sum(2)
        ranks = scores.new_zeros(scores.shape[1] + 1)
        known = self.ranks[:scores.shape[1]]
        ranks[1:len(known) + 1] = scores.new_tensor(known)
        total = ranks.cumsum(0)
        shared = (total[upto] - total[ahead]) / (upto - ahead)
        self.set_logits(task, shared.mean(0))

    def gates(self, task: str) -> Tensor:
        """See :meth:`BaseFusion.gates`; the learned numbers themselves."""
        return self.logits[task]

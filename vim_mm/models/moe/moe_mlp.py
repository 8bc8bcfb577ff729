# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional, Sequence, Union

from torch import Tensor

from .experts import Experts
from .moe_layer import MoELayer


class MoEMlp(MoELayer):
    """An MLP made of experts.

    ``y = sum over the k best e of p_e(x) expert_e(x)``, with the raw softmax
    probabilities ``p`` of the task's router.

    Args:
        dims (int): Width C of tokens.
        hidden (int): Hidden width of one expert; a dense MLP's divided by
            ``k`` costs a token what the dense MLP does.
        num_experts (int): E.
        k (int): Experts per token.
        tasks, router, gate_scale: See :class:`MoELayer`.
        act_cfg, dispatch: See :class:`Experts`.
    """

    def __init__(self,
                 dims: int,
                 hidden: int,
                 num_experts: int,
                 k: int,
                 tasks: Optional[Sequence[str]] = None,
                 router: str = 'mlp',
                 gate_scale: Union[float, str] = 1.,
                 act_cfg: Dict = dict(type='GELU'),
                 dispatch: str = 'auto') -> None:
        super().__init__(dims, num_experts, k, tasks, router, gate_scale)
        self.experts = Experts(dims, hidden, [num_experts], act_cfg, dispatch)

    def forward(self, x: Tensor) -> Tensor:
        """Run the task's experts.

        Args:
            x (Tensor): (..., C) tokens.

        Returns:
            Tensor: The same shape.
        """
        tokens = x.flatten(0, -2)
        gates, index = self.choose(self.router(tokens))
        y = self.experts(tokens, gates, index, self.router.num_experts)
        return self.with_idle(y.unflatten(0, x.shape[:-1]))

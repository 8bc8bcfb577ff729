# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Optional, Sequence, Union

import torch.nn.functional as F
from torch import Tensor, nn

from .experts import Experts
from .moe_layer import MoELayer


class MoEAttention(MoELayer):
    """Self-attention made of experts (Mod-Squad).

    An expert is a projection of queries, C -> d, and one of what they find,
    d -> C: the heads that a token asks. Keys and values are one head, shared
    by all experts and tasks.

        ``y = sum over the k best e of p_e(x) out_e(attend(query_e(x), K, V))``

    Args:
        dims (int): Width C of tokens.
        head_dims (int): Width d of queries, keys and values.
        num_experts (int): E.
        k (int): Experts per token.
        tasks, gate_scale: See :class:`MoELayer`.
        router (str): Kind of routers. Defaults to ``'linear'``, as in
            Mod-Squad.
        dispatch (str): See :class:`Experts`. Defaults to ``'auto'``.
        attn_drop (float): How often a token is not looked at. Defaults to 0.
        kv_bias (bool): Whether keys and values have a bias. Defaults to True.
    """

    def __init__(self,
                 dims: int,
                 head_dims: int,
                 num_experts: int,
                 k: int,
                 tasks: Optional[Sequence[str]] = None,
                 router: str = 'linear',
                 gate_scale: Union[float, str] = 1.,
                 dispatch: str = 'auto',
                 attn_drop: float = 0.,
                 kv_bias: bool = True) -> None:
        super().__init__(dims, num_experts, k, tasks, router, gate_scale)
        self.attn_drop = attn_drop
        self.kv = nn.Linear(dims, 2 * head_dims, bias=kv_bias)
        self.experts = Experts(
            dims, head_dims, [num_experts], dispatch=dispatch)
        self.experts.act = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Let tokens attend to each other.

        Args:
            x (Tensor): (B, L, C) tokens.

        Returns:
            Tensor: The same shape.
        """
        batch, tokens = x.size(0), x.flatten(0, 1)
        keys, values = self.kv(x).unsqueeze(1).chunk(2, -1)

        def attend(queries: Tensor) -> Tensor:
            # those of a token are queries of one head, one after the other
            found = F.scaled_dot_product_attention(
                queries.unflatten(0, (batch, 1, -1)).flatten(2, 3),
                keys.to(queries.dtype),
                values.to(queries.dtype),
                dropout_p=self.attn_drop if self.training else 0.)
            return found.reshape(queries.shape)

        gates, index = self.choose(self.router(tokens))
        y = self.experts(tokens, gates, index, self.router.num_experts, attend)
        return self.with_idle(y.unflatten(0, x.shape[:-1]))

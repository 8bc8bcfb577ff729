# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Iterable, Optional, Sequence, Tuple

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from torch import Tensor

from vim_mm.registry import MODELS
from ..layouts import pool_tokens


@MODELS.register_module()
class TokenPooling(BaseModule):
    """Pool a trunk's features into one standardised vector, for cls heads.

    Frozen features differ in scale by orders of magnitude, which a linear
    head learns slowly. Their mean and deviation are therefore measured once,
    on the features :class:`WarmHeadHook` caches, and divided out.

    Args:
        in_channels (int): D, the width after pooling; see
            :func:`pool_tokens`.
        num_extra_tokens (int): Class and register tokens before the patches.
            Defaults to 1.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
    """

    def __init__(self,
                 in_channels: int,
                 num_extra_tokens: int = 1,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_extra_tokens = num_extra_tokens
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('std', torch.ones(in_channels))

    def forward(self, features: Sequence[Tensor]) -> Tuple[Tensor]:
        """Return a one-element tuple of shape (B, in_channels).

        Raises:
            ValueError: If the pooled width is not ``in_channels``.
        """
        pooled = pool_tokens(features, self.num_extra_tokens)
        if pooled.shape[1] != self.mean.numel():
            raise ValueError(
                f'TokenPooling was told in_channels={self.mean.numel()}, but '
                f'{len(features)} levels pool to {pooled.shape[1]}.')
        return ((pooled - self.mean) / self.std, )

    @torch.no_grad()
    def fit(self, features: Iterable[Sequence[Tensor]]) -> None:
        """Measure mean and deviation on batches of cached features.

        All processes of a distributed run measure together.

        Args:
            features: One entry per batch, each as for :meth:`forward`.
        """
        pooled = torch.cat(
            [pool_tokens(f, self.num_extra_tokens) for f in features]).double()
        moments = torch.stack(
            [torch.ones_like(pooled[0]), pooled.mean(0), (pooled**2).mean(0)])
        moments = (moments * len(pooled)).to(self.mean.device)
        all_reduce(moments)
        mean, square = moments[1:] / moments[0]
        self.mean.copy_(mean)
        self.std.copy_((square - mean**2).clamp(min=1e-6).sqrt())

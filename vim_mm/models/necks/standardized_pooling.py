# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Iterable, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from torch import Tensor

from vim_mm.registry import MODELS
from vim_mm.utils.building import AUTO
from ..auto_channels import unknown_channels
from ..layouts import pool_tokens


# configs of 0.1.0 know it by its old name
@MODELS.register_module(name=['StandardizedPooling', 'TokenPooling'])
class StandardizedPooling(BaseModule):
    """Pool a trunk's features into one standardised vector, for cls heads.

    Frozen features differ in scale by orders of magnitude, which a linear
    head learns slowly. Their mean and deviation are therefore measured once,
    on the features :class:`WarmHeadHook` caches, and divided out. It was
    ``TokenPooling`` until 0.1.0.

    Args:
        in_channels (int | str): D, the width after pooling; see
            :func:`pool_tokens`. 'auto' takes it from the backbone where a
            whole model is built.
        num_extra_tokens (int): Class and register tokens before the patches.
            Defaults to 1.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
    """

    def __init__(self,
                 in_channels: Union[int, str],
                 num_extra_tokens: int = 1,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels == AUTO:
            raise ValueError(unknown_channels(type(self).__name__))
        self.num_extra_tokens = num_extra_tokens
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('std', torch.ones(in_channels))

    @staticmethod
    def auto_channels(features: Sequence[Tensor], cfg: Mapping) -> int:
        """``in_channels`` for features such as these.

        Args:
            features: As for :meth:`forward`.
            cfg (Mapping): The other settings.
        """
        return pool_tokens(features, cfg.get('num_extra_tokens', 1)).shape[1]

    def forward(self, features: Sequence[Tensor]) -> Tuple[Tensor]:
        """Return a one-element tuple of shape (B, in_channels).

        Raises:
            ValueError: If the pooled width is not ``in_channels``.
        """
        pooled = pool_tokens(features, self.num_extra_tokens)
        if pooled.shape[1] != self.mean.numel():
            raise ValueError(
                'StandardizedPooling was told '
                f'in_channels={self.mean.numel()}, but {len(features)} levels '
                f'pool to {pooled.shape[1]}.')
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

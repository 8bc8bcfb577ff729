# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Iterable, Mapping, Optional, Sequence, Tuple, Union

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
        num_extra_tokens (int, optional): Class and register tokens before the
            patches. Defaults to None: those of the trunk where a whole model
            is built, and elsewhere as many as ``in_channels`` has room for.
        init_cfg (dict, optional): mmengine init config. Defaults to None.
    """

    def __init__(self,
                 in_channels: Union[int, str],
                 num_extra_tokens: Optional[int] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if in_channels == AUTO:
            raise ValueError(unknown_channels(type(self).__name__))
        self.num_extra_tokens = num_extra_tokens
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('std', torch.ones(in_channels))

    def function_settings(self) -> Dict[str, dict]:
        """What changes its function, beside tensors."""
        return {'': dict(num_extra_tokens=self.num_extra_tokens)}

    @staticmethod
    def auto_settings(features: Sequence[Tensor], cfg: Mapping,
                      num_extra_tokens: int) -> dict:
        """Settings that its config leaves to what stands before it.

        Args:
            features: As for :meth:`forward`.
            cfg (Mapping): The settings.
            num_extra_tokens (int): Those of the trunk.
        """
        number = cfg.get('num_extra_tokens')
        number = num_extra_tokens if number is None else number
        auto = dict(num_extra_tokens=number)
        if cfg.get('in_channels') == AUTO:
            auto['in_channels'] = pool_tokens(features, number).shape[1]
        return auto

    def forward(self, features: Sequence[Tensor]) -> Tuple[Tensor]:
        """Return a one-element tuple of shape (B, in_channels).

        Raises:
            ValueError: If the pooled width is not ``in_channels``.
        """
        pooled = self._pool(features)
        if pooled.shape[1] != self.mean.numel():
            raise ValueError(
                'StandardizedPooling was told '
                f'in_channels={self.mean.numel()}, but {len(features)} levels '
                f'pool to {pooled.shape[1]}.')
        return ((pooled - self.mean) / self.std, )

    def _pool(self, features: Sequence[Tensor]) -> Tensor:
        number = self.num_extra_tokens
        if number is None:
            tokens = sum(level.shape[-1] for level in features
                         if level.dim() == 3)
            rest = self.mean.numel() - pool_tokens(features, 0).shape[1]
            number = max(rest // tokens, 0) if tokens else 0
        return pool_tokens(features, number)

    @torch.no_grad()
    def fit(self, features: Iterable[Sequence[Tensor]]) -> None:
        """Measure mean and deviation on batches of cached features.

        All processes of a distributed run measure together.

        Args:
            features: One entry per batch, each as for :meth:`forward`.
        """
        pooled = torch.cat(
            [self._pool(level) for level in features]).double()
        moments = torch.stack(
            [torch.ones_like(pooled[0]), pooled.mean(0), (pooled**2).mean(0)])
        moments = (moments * len(pooled)).to(self.mean.device)
        all_reduce(moments)
        mean, square = moments[1:] / moments[0]
        self.mean.copy_(mean)
        self.std.copy_((square - mean**2).clamp(min=1e-6).sqrt())

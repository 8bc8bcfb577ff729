# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Iterable, Optional

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_width

NORMS = dict(LN=nn.LayerNorm, BN=nn.BatchNorm1d)


@MODELS.register_module()
class ProxySpace(BaseModule):
    """Features of frozen networks, reprogrammed for a task.

    The reprogramming module R (linear, norm, GELU, linear) leads from the
    networks' features, standardised and side by side, into the proxy space,
    and the proxy classifier q from there to the task's classes. Both are
    learned with the task's labels on stored features. That reprogramming
    works on features, and of what layers it is made, is our reading of TDMR.

    Args:
        in_channels (int): Channels of the features, of all networks together.
        num_classes (int): Classes of the task.
        channels (int): Width of the proxy space; it need not be the
            student's. Defaults to 512.
        hidden (int, optional): Width inside R. Defaults to ``channels``.
        norm (str): Norm inside R, 'LN' or 'BN'. Defaults to 'LN'.
        standardize (bool): Whether every channel gets mean 0 and deviation 1
            on the training set first. Defaults to True.
        reprogram (bool): Whether there is R at all; without it the space is
            that of the features, and q a linear probe. Defaults to True.
    """

    def __init__(self,
                 in_channels: int,
                 num_classes: int,
                 channels: int = 512,
                 hidden: Optional[int] = None,
                 norm: str = 'LN',
                 standardize: bool = True,
                 reprogram: bool = True) -> None:
        super().__init__()
        check_width(channels, 'proxy.channels')
        if hidden is not None:
            check_width(hidden, 'proxy.hidden')
        if norm not in NORMS:
            raise ValueError(f'`proxy.norm` is {norm!r}; give one of '
                             f'{", ".join(NORMS)}.')
        self.standardize = standardize
        self.channels = channels if reprogram else in_channels
        self.register_buffer('mean', torch.zeros(in_channels))
        self.register_buffer('std', torch.ones(in_channels))
        #: Whether it was fitted to a task; a float, as averages need it.
        self.register_buffer('fitted', torch.zeros(()))
        self.reprogramming = nn.Sequential()
        if reprogram:
            hidden = hidden or channels
            self.reprogramming.extend([
                nn.Linear(in_channels, hidden), NORMS[norm](hidden),
                nn.GELU(), nn.Linear(hidden, channels)
            ])
        self.classifier = nn.Linear(self.channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """Reprogram features, (B, L, in_channels), to (B, L, channels)."""
        rows = (features.flatten(0, -2).float() - self.mean) / self.std
        return self.reprogramming(rows).unflatten(0, features.shape[:-1])

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and deviation of each channel from the training set.

        Args:
            batches (Iterable[Tensor]): Features, (B, L, in_channels) each.
        """
        if not self.standardize:
            return
        num, total, squares = 0, 0., 0.
        for batch in batches:
            rows = batch.flatten(0, -2).double()
            num += len(rows)
            total = total + rows.sum(0)
            squares = squares + rows.square().sum(0)
        mean = total / num
        std = (squares / num - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean)
        # a channel that never changes says nothing
        self.std.copy_(std.masked_fill(std < 1e-6, 1.))

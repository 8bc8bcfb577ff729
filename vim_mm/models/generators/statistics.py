# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Mean and variance of what norm layers read, and what they should be."""

from contextlib import contextmanager
from typing import (Callable, Dict, Iterable, Iterator, List, NamedTuple,
                    Optional)

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..patterns import match_names
from ..recorder import Call, Seen, tapping


class Moments(NamedTuple):
    """Of the channels of some values.

    Attributes:
        count (float): How many values a channel has.
        mean (Tensor): Shape (C, ).
        var (Tensor): Biased variance, (C, ).
    """
    count: float
    mean: Tensor
    var: Tensor


def moments(x: Tensor, axis: int) -> Moments:
    """Those of a tensor, over all axes but one."""
    values = x.movedim(axis, 0).flatten(1)
    var, mean = torch.var_mean(values, dim=1, correction=0)
    return Moments(values.shape[1], mean, var)


def pool(parts: Iterable[Moments]) -> Moments:
    """The moments of all values together."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    count = sum(part.count for part in parts)
    mean = sum(part.mean * (part.count / count) for part in parts)
    var = sum((part.var + (part.mean - mean).square()) * (part.count / count)
              for part in parts)
    return Moments(count, mean, var)


class LayerStatistics:
    """Distance of a batch from the statistics that a network expects.

    Layers are the BatchNorms that keep running statistics, which they expect
    in what they read; and the LayerNorms, which keep none: what they read on
    the downstream images is collected, see :meth:`collect`. Of each layer

        ||mean(x) - mean||_2 + ||var(x) - var||_2

    is added, over all images of the batch and all positions. This is the one
    term in which the images of a batch depend on each other.

    Args:
        model (nn.Module): The network.
        layers (str, optional): Pattern for the names of layers that count.
            Defaults to None, which is all of them.
        first (float): Weight of the first layer that runs. Defaults to 10.
        running (bool): Whether the running statistics of BatchNorms count,
            or those on the downstream images, as for LayerNorms. Defaults
            to True.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(self,
                 model: nn.Module,
                 layers: Optional[str] = None,
                 first: float = 10.,
                 running: bool = True) -> None:
        self.first = first
        names = None if layers is None else set(
            match_names(model, layers, 'statistics', nested=True))
        self.layers = {
            name: layer
            for name, layer in model.named_modules()
            if is_norm(layer) and (names is None or name in names)
        }
        if not self.layers:
            raise ValueError(
                f'{type(model).__name__} has no BatchNorm with running '
                'statistics and no LayerNorm'
                f'{"" if layers is None else f" named like {layers!r}"}; '
                'leave its statistics out with weights=dict(statistics=0).')
        self.targets: Dict[str, Moments] = {}
        for name, layer in self.layers.items():
            if running and isinstance(layer, _BatchNorm):
                self.targets[name] = Moments(0, layer.running_mean,
                                             layer.running_var)

    @property
    def is_complete(self) -> bool:
        """Whether all layers know what to expect."""
        return len(self.targets) == len(self.layers)

    @contextmanager
    def watching(self) -> Iterator[Seen]:
        """Within this context what the layers read is kept."""
        with tapping(self.layers, inputs=True) as seen:
            yield seen

    @torch.no_grad()
    def collect(self, passes: Iterable[Seen]) -> None:
        """Take the statistics of passes for those that layers expect.

        Layers that know theirs keep them.

        Args:
            passes (Iterable[Seen]): What :meth:`watching` saw, each.
        """
        wanted = self.layers.keys() - self.targets.keys()
        found: Dict[str, List[Moments]] = {name: [] for name in wanted}
        for seen in passes:
            for name in wanted:
                if seen[name]:
                    part = self._read(name, seen[name], torch.float64)
                    found[name].append(part)
        for name, parts in found.items():
            if parts:
                count, *rest = pool(parts)
                self.targets[name] = Moments(count, *(x.float() for x in rest))

    def __call__(
            self,
            seen: Seen,
            whole: Optional[Callable[[tuple, Tensor], Tensor]] = None
    ) -> Tensor:
        """The distance, a scalar; layers that did not run do not count.

        Args:
            seen (dict): What :meth:`watching` saw.
            whole (Callable, optional): Completes what a call read, from the
                layer's name and the number of the call. Defaults to None.
        """
        distance, weight = torch.zeros(()), self.first
        for name, calls in seen.items():
            if not calls or name not in self.targets:
                continue
            target, own = self.targets[name], self._read(
                name, calls, whole=whole)
            apart = sum(
                torch.linalg.vector_norm(x - y.to(x))
                for x, y in zip(own[1:], target[1:]))
            distance = distance.to(apart) + weight * apart
            weight = 1.
        return distance

    def _read(self,
              name: str,
              calls: List[Call],
              dtype: torch.dtype = torch.float32,
              whole: Optional[Callable] = None) -> Moments:
        layer = self.layers[name]
        read = [call.args[0] for call in calls]
        if whole is not None:
            read = [whole((name, index), x) for index, x in enumerate(read)]
        return pool(
            moments(x.to(dtype), channel_axis(layer, call))
            for x, call in zip(read, calls))


def is_norm(layer: nn.Module) -> bool:
    """Whether the inputs of a layer have statistics to hold on to."""
    if isinstance(layer, _BatchNorm):
        return layer.running_mean is not None
    return isinstance(layer, nn.LayerNorm)


def channel_axis(layer: nn.Module, call: Call) -> int:
    """The axis of the channels in what a norm layer read.

    LayerNorms of maps (``LayerNorm2d``, ``LN2d``) read channels first, unless
    they are told otherwise; plain ones read them last.
    """
    if isinstance(layer, _BatchNorm):
        return 1
    x, channels = call.args[0], layer.normalized_shape[-1]
    told = (*call.args[1:], *call.kwargs.values())
    of_maps = type(layer).forward is not nn.LayerNorm.forward
    if x.dim() == 4 and x.shape[1] == channels and of_maps \
            and 'channel_last' not in told:
        return 1
    return -1

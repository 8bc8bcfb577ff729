# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How tasks use the experts of a model, over many steps."""

import re
from contextlib import contextmanager
from typing import (Dict, Iterator, List, Mapping, NamedTuple, Optional,
                    Sequence, Tuple)

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseModule, ModuleDict
from torch import Tensor, nn

from vim_mm.utils.arguments import check_number
from ..recorder import Seen, tapping
from .moe_layer import MoELayer, moe_layers
from .surgery import Usage

#: the key of a row's usage in a state dict
_USAGE = re.compile(
    r'(?P<row>(.+\.)?_rows\.(?P<layer>[^.]+)\.(?P<task>[^.]+)\.)usage')


class Routing(NamedTuple):
    """What routers gave in a pass.

    Attributes:
        layers (dict[str, MoELayer]): The layers of experts.
        calls (dict): Calls of routers by layer and task.
    """
    layers: Dict[str, MoELayer]
    calls: Seen

    def ran(self) -> List[Tuple[str, str]]:
        """Layers and tasks whose routers ran."""
        return [key for key, calls in self.calls.items() if calls]

    def probabilities(self, layer: str, task: str) -> Tensor:
        """(N, E) probabilities of the stored experts, rows sum to 1.

        A pruned router's are those given that the expert is stored: what it
        thinks of dropped experts matters to no output.
        """
        router = self.layers[layer].routers[task]
        p = torch.cat([call.output for call in self.calls[layer, task]])
        if router.columns is None:
            return p
        return F.normalize(router.stored(p), p=1., dim=-1)

    def hits(self, layer: str, task: str) -> Tensor:
        """(E,) number of tokens whose k best hold the expert."""
        part = self.layers[layer]
        p = torch.cat([call.output for call in self.calls[layer, task]])
        index = part.choose(p, task)[1].flatten()
        hits = p.new_zeros(part.routers[task].num_experts)
        return hits.scatter_add_(0, index, p.new_ones(len(index)))


class Row(nn.Module):
    """What one task makes of the experts of one layer, in float buffers.

    Args:
        num_experts (int): E.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.register_buffer('mean', torch.zeros(num_experts))
        self.register_buffer('usage', torch.zeros(num_experts))
        # no integer: averaging models leaves those behind
        self.register_buffer('count', torch.zeros(()))

    def __len__(self) -> int:
        return len(self.mean)

    def update(self, mean: Tensor, usage: Tensor, valid: Tensor,
               momentum: float, usage_momentum: float, start: int) -> None:
        """Take one step in where ``valid``, without asking the device."""
        count = self.count + 1
        early = 1 - 1 / count  # the mean of all so far: nothing is biased
        late = early.clamp(max=momentum)
        share = torch.where(count > start, late, early)
        updates = [(self.mean, torch.lerp(mean, self.mean, share)),
                   (self.usage,
                    torch.lerp(usage, self.usage,
                               early.clamp(max=usage_momentum))),
                   (self.count, count)]
        for buffer, value in updates:
            buffer.copy_(torch.where(valid, value, buffer))


class RoutingStatistics(BaseModule):
    """Running means of what each task's routers do.

    Each task has rows of its own, one per layer: others do not touch them,
    and they are as wide as its router, however many experts later tasks add.

    Args:
        momentum (float): Share of the old mean in the new one. Defaults to
            .99.
        start (int): In a task's first steps, at least this many, the plain
            mean of all is taken. Defaults to 100.
        usage_momentum (float): The same for the experts chosen. Defaults to
            .95.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self,
                 momentum: float = .99,
                 start: int = 100,
                 usage_momentum: float = .95,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(init_cfg)
        for name, value in dict(
                momentum=momentum, usage_momentum=usage_momentum).items():
            check_number(value, name, below=1)
        check_number(start, 'start')
        self.momentum = momentum
        self.usage_momentum = usage_momentum
        self.start = start
        self._rows = ModuleDict()

    # -------------------------------------------------------------- rows

    def bind(self,
             backbone: nn.Module,
             tasks: Optional[Sequence[str]] = None) -> None:
        """Make rows for the routers of a backbone.

        Called again, it keeps rows that still fit and adds those of new
        tasks.

        Args:
            backbone (nn.Module): The backbone.
            tasks (Sequence[str], optional): The tasks; those of each layer
                when None.

        Raises:
            ValueError: If it has no layer of experts, or one lacks a task.
        """
        who = type(self).__name__
        layers = moe_layers(backbone)
        if not layers:
            raise ValueError(
                f'{who} reads the routers of layers of experts, but '
                f'{type(backbone).__name__} has none; take a backbone with '
                'experts, or leave `routing` out.')
        for name, layer in layers.items():
            for task in tasks or layer.tasks:
                if task not in layer.tasks:
                    raise ValueError(
                        f"{who} is to read task '{task}', but layer '{name}' "
                        f'has routers for {layer.tasks}; name all tasks in '
                        'the `tasks` of the backbone.')
        for name, layer in layers.items():
            device = next(layer.parameters()).device
            if _key(name) not in self._rows:
                self._rows[_key(name)] = ModuleDict()
            rows = self._rows[_key(name)]
            for task in tasks or layer.tasks:
                width = layer.routers[task].num_experts
                if task not in rows or len(rows[task]) != width:
                    rows[task] = Row(width).to(device)

    @property
    def layers(self) -> List[str]:
        """Names of the layers."""
        return [key.replace('/', '.') for key in self._rows]

    def rows(self, layer: str) -> Dict[str, Row]:
        """The rows of one layer by task."""
        return dict(self._rows[_key(layer)].items())

    def seen_rows(self, layer: str) -> Dict[str, Row]:
        """Those of tasks that have run."""
        return {
            task: row
            for task, row in self.rows(layer).items() if row.count > 0
        }

    # ------------------------------------------------------------- a pass

    @contextmanager
    def record(self, backbone: nn.Module) -> Iterator[Routing]:
        """Within this context the outputs of all routers are kept."""
        layers = moe_layers(backbone)
        with tapping({(name, task): router
                      for name, layer in layers.items()
                      for task, router in layer.routers.items()}) as calls:
            yield Routing(layers, calls)

    @torch.no_grad()
    def update(self, seen: Routing) -> None:
        """Take in what routers gave, in all processes together.

        Steps with values that are not finite leave a row as it is.

        Args:
            seen (Routing): From :meth:`record`.
        """
        rows = {(name, task): row
                for name in self.layers
                for task, row in self.rows(name).items()}
        ran = set(seen.ran())
        sums = []
        for (name, task), row in rows.items():
            if (name, task) in ran:
                p = seen.probabilities(name, task)
                parts = (p.sum(0), seen.hits(name, task),
                         p.new_full((1, ), len(p)))
                sums.append(torch.cat(parts).to(row.mean))
            else:
                sums.append(row.mean.new_zeros(2 * len(row) + 1))
        total = torch.cat(sums)
        all_reduce(total)
        parts = total.split([len(part) for part in sums])
        for row, part in zip(rows.values(), parts):
            mean, usage, num = part.split([len(row), len(row), 1])
            valid = (num[0] > 0) & mean.isfinite().all()
            row.update(mean / num, usage / num, valid, self.momentum,
                       self.usage_momentum, self.start)

    # ------------------------------------------------------------- summary

    def usage(self) -> Usage:
        """By layer and task, the share of tokens whose k best hold an expert.

        Tasks that have not run are left out.
        """
        return {
            layer: {
                task: row.usage.clone()
                for task, row in self.seen_rows(layer).items()
            }
            for layer in self.layers
        }

    def information(self, layer: str) -> Tensor:
        """I(T;E) in nats of the tasks that have run."""
        rows = [row.mean for row in self.seen_rows(layer).values()]
        return information(rows) if rows else torch.zeros(())


def _key(name: str) -> str:
    return name.replace('.', '/')  # keys of modules have no dots


def saved_usage(state: Mapping[str, Tensor]) -> Usage:
    """What :meth:`RoutingStatistics.usage` was when tensors were saved.

    Args:
        state (Mapping[str, Tensor]): Of a model, or of the statistics alone.
    """
    usage: Dict[str, Dict[str, Tensor]] = {}
    for key, value in state.items():
        found = _USAGE.fullmatch(key)
        count = state.get(found['row'] + 'count') if found else None
        if count is not None and count.numel() == 1 and count > 0:
            layer = found['layer'].replace('/', '.')
            usage.setdefault(layer, {})[found['task']] = value
    return usage


def padded(rows: Sequence[Tensor]) -> Tensor:
    """(T, E) of rows of E experts or fewer, the first ones."""
    width = max(map(len, rows))
    return torch.stack([F.pad(row, (0, width - len(row))) for row in rows])


def information(rows: Sequence[Tensor], eps: float = 0.) -> Tensor:
    """Mutual information I(T;E) of tasks and experts in nats.

    All tasks are equally likely, ``P(T) = 1/T``, however many tokens each has.

    Args:
        rows (Sequence[Tensor]): P(E|T), one row a task. A narrower row knows
            the first experts only.
        eps (float): Added to the ratio in the logarithm. Defaults to 0.
    """
    marginal = padded(rows).mean(0)
    tiny = torch.finfo(marginal.dtype).tiny
    parts = [
        torch.xlogy(row, row / marginal[:len(row)].clamp(min=tiny) + eps)
        for row in rows
    ]
    return torch.stack([part.sum() for part in parts]).mean()

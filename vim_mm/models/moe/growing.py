# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A new task in a layer of experts, and what it starts as.

A task that starts as another one gives what that one gives, bit for bit:
copies of experts take the places of their originals, see :class:`Router`.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Dict, List, Mapping, MutableMapping, Optional, Sequence

import torch
from torch import Tensor, nn

from .experts import Experts
from .routers import Router


@dataclass(frozen=True)
class Start:
    """What a new task of a layer starts as.

    Attributes:
        like (str): The task.
        first (int): The first new expert.
        originals (list[int]): The experts that the new ones are copies of.
    """
    like: str
    first: int
    originals: List[int]

    def router(self, routers: Mapping[str, Router]) -> Router:
        """The new task's router."""
        source = routers[self.like]
        num = self.first + len(self.originals) if self.originals \
            else source.num_experts
        return source.like(self.originals, num)


def start(experts: Experts,
          routers: nn.ModuleDict,
          num: int,
          like: Optional[str],
          usage: Optional[Mapping[str, Tensor]] = None) -> tuple:
    """Add experts for a new task.

    Args:
        experts (Experts): Those of the layer; the new ones come last.
        routers (nn.ModuleDict): The other tasks' routers.
        num (int): How many new experts.
        like (str, optional): The task that it starts as; afresh when None.
        usage (Mapping[str, Tensor], optional): By task, how often each expert
            that it knows has run. The first ones are copied when None.

    Returns:
        tuple[Router, Start | None]: The router, and what it starts as.
    """
    first = len(experts)
    if like is None:
        if num:
            experts.add(num)
        old = next(iter(routers.values()))
        return Router(old.dims, len(experts), old.kind), None
    begin = Start(like, first,
                  routers[like].originals(num, (usage or {}).get(like)))
    if num:
        experts.add(num, begin.originals)
    return begin.router(routers), begin


def start_again(starts: Dict[str, Start], routers: nn.ModuleDict,
                groups: Sequence[int], state: MutableMapping[str, Tensor],
                prefix: str) -> None:
    """Let tasks that a checkpoint lacks start as those that it holds.

    When they were added their weights were copies of others, too, but of
    those from before the checkpoint was loaded.

    Args:
        starts (dict[str, Start]): What each new task of a layer starts as.
        routers (nn.ModuleDict): Of the layer.
        groups (Sequence[int]): Numbers of its experts.
        state (MutableMapping[str, Tensor]): The checkpoint's tensors, in
            the layer's groups; what is missing is added.
        prefix (str): What the layer's names begin with.
    """
    for task in missing(starts, state, prefix):
        begin = starts[task]
        old = f'{prefix}routers.{begin.like}.'
        router = deepcopy(routers[begin.like])
        router.load_state_dict({
            key[len(old):]: value
            for key, value in state.items() if key.startswith(old)
        })
        router = begin.router({begin.like: router})
        routers[task].slots = router.slots  # of any size
        state.update({
            f'{prefix}routers.{task}.{key}': value
            for key, value in router.state_dict().items()
        })
        _copy_experts(begin, groups, state, f'{prefix}experts.groups.')


def missing(starts: Mapping[str, Start], state: Mapping[str, Tensor],
            prefix: str) -> List[str]:
    """The tasks that a checkpoint lacks, while it has what they start as."""
    def has(task: str) -> bool:
        return any(key.startswith(f'{prefix}routers.{task}.') for key in state)

    found: List[str] = []
    for task, begin in starts.items():
        if not has(task) and (has(begin.like) or begin.like in found):
            found.append(task)
    return found


def _copy_experts(begin: Start, groups: Sequence[int],
                  state: MutableMapping[str, Tensor], prefix: str) -> None:
    spans = list(zip([0, *accumulate(groups)], accumulate(groups)))
    for name in ('w1', 'b1', 'w2', 'b2'):
        old = torch.cat([
            state[f'{prefix}{index}.{name}']
            for index, (_, end) in enumerate(spans) if end <= begin.first
        ])
        for index, (first, end) in enumerate(spans):
            copied = begin.originals[max(first - begin.first, 0):
                                     max(end - begin.first, 0)]
            if copied:
                state[f'{prefix}{index}.{name}'] = old[copied]

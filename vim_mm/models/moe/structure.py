# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How many experts and routers a layer has, as the names of tensors tell it.

The same function reads it off a layer, a checkpoint and a file's header, so
that a pruned or extended layer needs no description of its own.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from typing import (Dict, Iterable, List, Mapping, MutableMapping, Optional,
                    Sequence, Tuple)

import torch
from torch import Tensor

_EXPERTS = re.compile(r'(experts\.groups)\.(\d+)\.(\w+)')
_LAST = {'net.weight': 'linear', 'net.2.weight': 'mlp'}
_ADDED = re.compile(r'added\.(\d+)\.weight')
#: what names columns of a router
_LISTS = re.compile(r'routers\.([^.]+)\.(?:columns|slots|added\.\d+\.of)')


@dataclass(frozen=True)
class RouterShape:
    """Of one task's router.

    Attributes:
        kind (str): See :class:`Router`.
        width (int): How many experts it tells apart.
        kept (int, optional): How many of them are stored, if it was pruned.
        added (tuple[int]): How many of them came after it, at a time.
        slots (tuple[int], optional): Size of its list of places, for which
            copies and their originals compete.
    """
    kind: str
    width: int
    kept: Optional[int] = None
    added: Tuple[int, ...] = ()
    slots: Optional[Tuple[int, int]] = None

    @property
    def num_experts(self) -> int:
        """How many experts it chooses from."""
        return self.width if self.kept is None else self.kept

    def __str__(self) -> str:
        added = f' ({sum(self.added)} of them added)' if self.added else ''
        return f'{self.num_experts} of {self.width} experts{added}'


@dataclass(frozen=True)
class Structure:
    """Of one layer.

    Attributes:
        groups (list[int]): Number of experts in each group.
        routers (dict[str, RouterShape]): By task.
    """
    groups: List[int]
    routers: Dict[str, RouterShape]

    @property
    def num_experts(self) -> int:
        """How many experts are stored."""
        return sum(self.groups)


def structure_in(shapes: Mapping[str, Sequence[int]],
                 prefix: str = '') -> Structure:
    """What the names and shapes of tensors say of one layer.

    Args:
        shapes (Mapping[str, Sequence[int]]): The tensors' shapes by name.
        prefix (str): What the layer's names begin with.

    Raises:
        ValueError: If they cannot be those of a layer of experts.
    """
    groups: Dict[int, int] = {}
    kinds, widths, kept, slots = {}, {}, {}, {}
    added: Dict[str, Dict[int, int]] = {}
    for name, shape in shapes.items():
        if not name.startswith(prefix):
            continue
        name = name[len(prefix):]
        if name.startswith(('experts.', 'routers.')) and (
                not shape or (shape[0] and 0 in shape)):
            raise ValueError(f"The tensor '{prefix}{name}' has the shape "
                             f'{tuple(shape)}, which is none of a layer of '
                             'experts; get the file again.')
        match = _EXPERTS.match(name)
        if match:
            groups.setdefault(int(match[2]), shape[0])
        elif name.startswith('routers.'):
            task, _, name = name[len('routers.'):].partition('.')
            if name in _LAST:
                kinds[task], widths[task] = _LAST[name], shape[0]
            elif name == 'columns':
                kept[task] = shape[0]
            elif name == 'slots':
                slots[task] = tuple(shape)
            elif _ADDED.fullmatch(name):
                index = int(_ADDED.fullmatch(name)[1])
                added.setdefault(task, {})[index] = shape[0]
    lists = kept.keys() | slots.keys() | added.keys()
    if sorted(groups) != list(range(len(groups))) or lists - widths.keys():
        raise ValueError(f"The tensors '{prefix}…' are not those of a layer "
                         'of experts; get the file again.')
    routers = {}
    for task, width in widths.items():
        sizes = tuple(size for _, size in sorted(added.get(task, {}).items()))
        routers[task] = RouterShape(kinds[task], width + sum(sizes),
                                    kept.get(task), sizes, slots.get(task))
    return Structure([groups[i] for i in range(len(groups))], routers)


def check_columns(structure: Structure, state: Mapping[str, Tensor],
                  prefix: str = '') -> None:
    """Refuse a router's lists that name columns which it has not.

    Args:
        structure (Structure): Of the layer.
        state (Mapping[str, Tensor]): Its tensors.
        prefix (str): What their names begin with.

    Raises:
        ValueError: If one does.
    """
    for name, value in state.items():
        found = name.startswith(prefix) and _LISTS.fullmatch(
            name[len(prefix):])
        if not found or value.is_meta:
            continue
        width = structure.routers[found[1]].width
        if not 0 <= int(value.min()) <= int(value.max()) < width:
            raise ValueError(f"'{name}' names columns that its router has "
                             'not: it is damaged.')


def holds_experts(names: Iterable[str]) -> bool:
    """Whether tensors of these names are those of layers of experts."""
    return any(map(_EXPERTS.search, names))


def fit_state(own: Structure, state: MutableMapping[str, Tensor],
              prefix: str) -> None:
    """Cut a checkpoint's experts, in place, into a layer's groups.

    It may lack what the layer has at its end: new experts and routers.

    Args:
        own (Structure): Of the layer.
        state (MutableMapping[str, Tensor]): The checkpoint's tensors.
        prefix (str): What the layer's names begin with.

    Raises:
        ValueError: If the layer was pruned and the checkpoint was not, or the
            reverse, or they differ otherwise.
    """
    mine = {
        name: value
        for name, value in state.items() if name.startswith(prefix)
    }
    stored = structure_in({n: v.shape for n, v in mine.items()}, prefix)
    if not stored.groups:
        return
    _check(own, stored, prefix.rstrip('.'))
    check_columns(stored, mine, prefix)
    if stored.groups == own.groups[:len(stored.groups)]:
        return
    whole: Dict[str, Dict[int, Tensor]] = {}
    for name in mine:
        match = _EXPERTS.fullmatch(name[len(prefix):])
        if match:
            parts = whole.setdefault(match[3], {})
            parts[int(match[2])] = state.pop(name)
    for name, parts in whole.items():
        tensor = torch.cat([parts[i] for i in sorted(parts)])
        for i, (start, end) in enumerate(_spans(own.groups)):
            if end <= len(tensor):
                state[f'{prefix}experts.groups.{i}.{name}'] = tensor[start:end]


def _spans(sizes: Sequence[int]) -> List[tuple]:
    ends = list(accumulate(sizes))
    return list(zip([0, *ends], ends))


def _check(own: Structure, stored: Structure, layer: str) -> None:
    for task in own.routers.keys() & stored.routers.keys():
        mine, theirs = own.routers[task], stored.routers[task]
        if mine.kind != theirs.kind:
            raise ValueError(
                f"`{layer}` has {mine.kind} routers and the checkpoint "
                f"{theirs.kind} ones; set `router='{theirs.kind}'`.")
        if mine != theirs:
            _refuse(layer, f"the router of task '{task}' chooses from {mine}",
                    f"the checkpoint's from {theirs}", mine.num_experts
                    > theirs.num_experts)
    ends = [end for _, end in _spans(own.groups)]
    mine, theirs = own.num_experts, stored.num_experts
    if theirs not in ends:
        _refuse(layer, f'there are {mine} experts', f'{theirs} in the '
                'checkpoint', mine > theirs)


def _refuse(layer: str, mine: str, theirs: str, lacks: bool) -> None:
    if lacks:
        raise ValueError(
            f'In `{layer}` {mine}, {theirs}, which was pruned or trained '
            "before new ones came; build the trunk as its file says, "
            "`dict(type='vim_mm.load_moe', checkpoint=…)`.")
    raise ValueError(
        f'In `{layer}` {mine}, {theirs}: this model is pruned or lacks new '
        'ones; load a checkpoint of this very model, or extract it anew from '
        'the full one (`vim-mm moe extract`).')

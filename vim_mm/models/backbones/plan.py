# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What runs in every slot, resolved once instead of in every pass."""

from collections import defaultdict
from contextlib import contextmanager
from typing import (Callable, Dict, Iterator, List, Optional, Sequence, Set,
                    Tuple, Union)

import torch
from torch import Size, Tensor

from ..adapters import AdapterBank, Group, PackedGroup, ReadOut
from ..autocast import exact, is_cast
from .made_of import MadeOf
from .slots import SlotSpec
from .weighing import MixedWeighing, TaskWeighing

Weighing = Union[TaskWeighing, MixedWeighing]
#: by slot, by group, what the group takes as gates
Entries = List[list]


@contextmanager
def untraced() -> Iterator[None]:
    """Within this context a trace of TorchScript records nothing."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)


class Plan:
    """What some modules do in every slot, until one of them changes.

    What is frozen lies packed, in the precision it runs in; gates that do not
    learn are folded into it, and modules of weight zero are left out. What
    learns is read anew in every pass.

    Args:
        bank (AdapterBank): The modules.
        specs (Sequence[SlotSpec]): All slots of the trunk, in order.
        names (Sequence[str]): The modules that run.
        weighing (Weighing, optional): Where their gates come from; None
            weighs each by one.
        dtype (torch.dtype, optional): The precision of autocast; None outside
            of it.
        device (str): Type of the device, for autocast.
    """

    def __init__(self, bank: AdapterBank, specs: Sequence[SlotSpec],
                 names: Sequence[str], weighing: Optional[Weighing],
                 dtype: Optional[torch.dtype], device: str) -> None:
        self.specs = list(specs)
        self.weighing = weighing
        self.dtype = dtype if all(map(is_cast, bank.parameters())) else None
        self.device = device
        self.is_beside = any(map(bank.is_beside, names))
        merge = weighing is not None and weighing.merges
        self.groups = [bank.groups(s.name, names, merge) for s in self.specs]
        places = {} if weighing is None else weighing.places
        self.rows = [places.get(spec.name) for spec in self.specs]
        fixed = {g for groups in self.groups for g in groups if g.is_fixed}
        gates = None if weighing is None else weighing.gates()
        self.folds = gates is None or not (
            gates.requires_grad or gates.dim() > 2 or weighing.in_slots)
        watched = [a for gs in self.groups for g in gs for a in g.adapters]
        kept = [a for group in fixed for a in group.adapters]
        if gates is not None:
            watched.append(weighing.fusion)
            kept += [weighing.fusion] * self.folds
        self.made_of = MadeOf(kept, watched)
        self.entries: Entries = [[None] * len(g) for g in self.groups]
        self.stacks: List[Stack] = []
        # it outlives this pass, in whatever mode that runs
        with torch.inference_mode(False), torch.no_grad(), exact(device):
            if self.folds:
                self._fold(fixed, gates)
            else:
                self._pack(fixed, gates)
        self.needs_grid = [
            any(a.needs_grid for g in groups for a in g.adapters)
            for groups in self.groups
        ]

    def _fold(self, fixed: Set[Group], gates: Optional[Tensor]) -> None:
        """Pack what is frozen, gates included."""
        used = None if gates is None else gates.ne(0).any(dim=0)
        for place, (row, groups) in enumerate(zip(self.rows, self.groups)):
            kept: List[Group] = []
            entries: list = []
            for group in groups:
                own = None if gates is None else group.mine(gates[row])
                if group in fixed:
                    group = group.folded(own, used, self.dtype)
                    own = group and group.read_out
                if group is not None:
                    kept.append(group)
                    entries.append(own)
            self.groups[place], self.entries[place] = kept, entries

    def _pack(self, fixed: Set[Group], gates: Tensor) -> None:
        """Pack what is frozen; its gates come with every pass."""
        alike: Dict[tuple, List[Tuple[int, int]]] = defaultdict(list)
        for place, groups in enumerate(self.groups):
            for index, group in enumerate(groups):
                if group in fixed and not group.merge:
                    groups[index] = packed = group.packed(self.dtype)
                    if gates.dim() == 2 and not self.weighing.in_slots:
                        alike[packed.shape].append((place, index))
        for where in alike.values():
            stacked = [self.groups[place][index] for place, index in where]
            rows = [self.rows[place] for place, _ in where]
            self.stacks.append(Stack(stacked, rows, where, gates.device))

    @property
    def is_current(self) -> bool:
        """Whether what it was made of is still the same, and still frozen."""
        return self.made_of.is_same

    def begin(self, image: Size) -> 'Pass':
        """Start a pass.

        Args:
            image (torch.Size): Shape of the batch of images.

        Raises:
            ValueError: If each image has a task of its own and their number
                is another one.
        """
        if self.folds:
            return Pass(self, image, self.entries)
        if self.weighing.in_slots:
            return Pass(self, image, self.entries, self.weighing.rows())
        gates = self.weighing.gates()
        if gates.dim() == 3 and gates.shape[1] != image[0]:
            raise ValueError(f'A batch of {image[0]} images got tasks for '
                             f'{gates.shape[1]}; name one task for each.')
        rows = gates.unbind(0)
        entries = [[group.mine(rows[row]) for group in groups]
                   for row, groups in zip(self.rows, self.groups)]
        with exact(self.device):
            for stack in self.stacks:
                for (place, index), weights in zip(
                        stack.where, stack.read_outs(gates, self.dtype)):
                    entries[place][index] = weights
        return Pass(self, image, entries)


class Stack:
    """Packed groups of equal shapes, whose gates are folded in together.

    Args:
        groups (Sequence[PackedGroup]): The groups.
        rows (Sequence[int]): The row of each among the gates.
        where (Sequence[tuple[int, int]]): The slot and the index of each.
        device (torch.device): Where gates are.
    """

    def __init__(self, groups: Sequence[PackedGroup], rows: Sequence[int],
                 where: Sequence[Tuple[int, int]],
                 device: torch.device) -> None:
        self.where = list(where)
        self.first = groups[0]
        self.rows = torch.tensor(rows, device=device)
        packed = [group.exact for group in groups]
        self.up = torch.stack([each.up for each in packed])
        self.bias = None
        if packed[0].bias is not None:
            self.bias = torch.stack([each.bias for each in packed])

    def read_outs(self, gates: Tensor,
                  dtype: Optional[torch.dtype]) -> List[ReadOut]:
        """:meth:`Packed.fold` of all groups, in a few kernels.

        Args:
            gates (Tensor): Of all slots, (S, N).
            dtype (torch.dtype, optional): Precision of the result; that of
                the adapters when None.
        """
        like = self.first.exact
        gates = like.scaled(self.first.mine(gates[self.rows]))
        weight = (self.up * like.repeated(gates)[:, None]).to(dtype)
        if self.bias is None:
            return [(each, None) for each in weight.unbind(0)]
        bias = like.biases(gates, self.bias).to(dtype)
        return list(zip(weight.unbind(0), bias.unbind(0)))


class Pass:
    """One pass of a plan over a batch of images.

    Args:
        plan (Plan): What runs.
        image (torch.Size): Shape of the batch.
        entries (Entries): What the groups take as gates.
        gates_in (callable, optional): The gates, where they depend on what a
            slot reads, see :meth:`BaseFusion.rows`.
    """

    def __init__(self,
                 plan: Plan,
                 image: Size,
                 entries: Entries,
                 gates_in: Optional[Callable] = None) -> None:
        self.plan = plan
        self.image = image
        self.entries = entries
        self.gates_in = gates_in
        self.grids: Dict[Tuple[int, int], Tuple[int, int]] = {}

    def delta(self,
              place: int,
              x: Tensor,
              grid: Optional[Tuple[int, int]] = None,
              states: Optional[dict] = None) -> Optional[Tensor]:
        """What is added in a slot, None when that is nothing.

        Args:
            place (int): Which slot it is.
            x (Tensor): What it reads: tokens (B, L, C), or the input of a
                linear layer, (..., C).
            grid (tuple[int, int], optional): Rows and columns of the tokens;
                None where they follow from the image.
            states (dict, optional): For outputs, see
                :meth:`OutputSlot.raise_level`.
        """
        plan, total = self.plan, None
        groups, entries = plan.groups[place], self.entries[place]
        if not groups:
            return None
        spec = plan.specs[place]
        if spec.is_linear:  # windows too: the images come first
            shared = x.shape[0] % self.image[0]  # a table of no image
            x = x.reshape(1 if shared else self.image[0], -1, x.shape[-1])
        if grid is None and plan.needs_grid[place]:
            grid = self._grid(spec, x.shape[1])
        if self.gates_in is not None:
            row = self.gates_in(plan.rows[place], x)
            entries = [group.mine(row) for group in groups]
        for group, gates in zip(groups, entries):
            if states is None:
                delta = group(x, gates, grid)
            else:
                delta, states[group.key] = group(x, gates, grid,
                                                 states.get(group.key))
            total = delta if total is None else total + delta
        return total

    def _grid(self, spec: SlotSpec, length: int) -> Tuple[int, int]:
        """Rows and columns of a slot's tokens, found once for all alike."""
        if torch.compiler.is_compiling():  # it folds them, and nothing is kept
            return spec.grid(self.image[-2:], length)
        key = spec.stride, spec.num_extra_tokens
        rows, cols = self.grids.get(key, (0, 0))
        if rows * cols + spec.num_extra_tokens != length:
            self.grids[key] = spec.grid(self.image[-2:], length)
        return self.grids[key]

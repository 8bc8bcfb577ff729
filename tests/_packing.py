# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The same modules run in three ways, slot by slot, without a trunk."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch._dynamo
from torch import Size, Tensor

from _tiny import fill
from vim_mm.models.adapters import AdapterBank
from vim_mm.models.adapters.base_adapter import BaseAdapter, weigh
from vim_mm.models.backbones import SlotSpec
from vim_mm.models.backbones.plan import Plan
from vim_mm.models.backbones.weighing import MixedWeighing, TaskWeighing
from vim_mm.models.fusion import BaseFusion, build_fusion

STRIDE, DIMS = 4, 6
SLOTS = ['s.0', 's.1', 's.2']


@dataclass
class Case:
    """Modules, what weighs them, and the tokens that each slot reads."""
    bank: AdapterBank
    inputs: Dict[str, Tensor]
    grid: Tuple[int, int]
    extra: int = 0
    fusion: Optional[BaseFusion] = None
    #: a task, or a task for each image
    task: Union[None, str, Sequence[str]] = None

    @property
    def specs(self) -> List[SlotSpec]:
        return [
            SlotSpec(name, x.shape[-1], False, self.extra, STRIDE)
            for name, x in self.inputs.items()
        ]

    @property
    def image(self) -> Size:
        batch = len(next(iter(self.inputs.values())))
        return Size([batch, 3, *(STRIDE * side for side in self.grid)])

    @property
    def weighing(self) -> Union[None, TaskWeighing, MixedWeighing]:
        if self.fusion is None:
            return None
        kind = TaskWeighing if isinstance(self.task, str) else MixedWeighing
        return kind(self.fusion, self.task)

    @property
    def names(self) -> List[str]:
        return (self.bank.names
                if self.fusion is None else self.weighing.names)

    @property
    def merges(self) -> bool:
        return self.fusion is not None and self.fusion.merges

    def row(self, slot: str, x: Tensor) -> Optional[Tensor]:
        """The gates of a slot, (N, ) or (B, N); None for ones."""
        weighing = self.weighing
        if weighing is None or slot not in weighing.places:
            return None
        place = weighing.places[slot]
        if weighing.in_slots:
            return weighing.rows()(place, x)
        return weighing.gates()[place]

    def loop(self) -> Dict[str, Tensor]:
        """One adapter after the other: the reference."""
        deltas: Dict[str, Tensor] = {}
        states: Dict[str, tuple] = {}
        for slot, x in self.inputs.items():
            row = self.row(slot, x)
            inside = [n for n in self.names if slot in self.bank.slots_of(n)]
            if self.merges and inside:
                adapters = self.bank.in_slot(slot, inside)
                deltas[slot] = BaseAdapter.merged.__func__(
                    type(adapters[0]), adapters, row, x, self.grid)
                continue
            for name in inside:
                adapter = self.bank.adapter(name, slot)
                if adapter.beside:
                    value, states[name] = adapter(x, self.grid,
                                                  states.get(name))
                else:
                    value = adapter(x, self.grid)
                if row is not None:
                    value = weigh(row[..., self.names.index(name)], value)
                deltas[slot] = deltas.get(slot, 0) + value
        return deltas

    def wide(self) -> Dict[str, Tensor]:
        """All adapters of a kind as one, laid side by side in every call."""
        beside = any(map(self.bank.is_beside, self.names))
        states: Optional[dict] = {} if beside else None
        deltas = {
            slot: self.bank(slot, x, self.grid, self.names, self.row(slot, x),
                            self.merges, states)
            for slot, x in self.inputs.items()
        }
        return {k: v for k, v in deltas.items() if v is not None}

    def packed(self,
               dtype: Optional[torch.dtype] = None) -> Dict[str, Tensor]:
        """By a plan."""
        return self.run(self.plan(dtype), *self.inputs.values())

    def compiled(self) -> Dict[str, Tensor]:
        """By a plan whose pass is one compiled graph."""
        plan = self.plan()
        torch._dynamo.reset()
        run = torch.compile(
            lambda *inputs: self.run(plan, *inputs),
            backend='aot_eager',
            fullgraph=True)
        return run(*self.inputs.values())

    def plan(self, dtype: Optional[torch.dtype] = None) -> Plan:
        return Plan(self.bank, self.specs, self.names, self.weighing, dtype,
                    'cpu')

    def run(self, plan: Plan, *inputs: Tensor) -> Dict[str, Tensor]:
        running = plan.begin(self.image)
        states: Optional[dict] = {} if plan.is_beside else None
        deltas = {
            slot: running.delta(place, x, states=states)
            for place, (slot, x) in enumerate(zip(self.inputs, inputs))
        }
        return {k: v for k, v in deltas.items() if v is not None}


def build_case(adapters: Sequence[dict],
               fusion: Optional[dict] = None,
               task: Union[None, str, Sequence[str]] = None,
               occupied: Optional[Sequence[Sequence[str]]] = None,
               learns: Sequence[bool] = (),
               grid: Tuple[int, int] = (3, 4),
               extra: int = 1,
               batch: int = 2,
               dims: int = DIMS,
               dtype: torch.dtype = torch.float64,
               std: float = 0.5) -> Case:
    """Modules m0, m1, ... of these configs; the last of them learn.

    Args:
        adapters (Sequence[dict]): Config of each module's adapters.
        fusion (dict, optional): Config of what weighs them.
        task (str | Sequence[str], optional): The task, or one for each image.
        occupied (Sequence[Sequence[str]], optional): The slots of each; all
            when None.
        learns (Sequence[bool]): Whether each learns; none when empty.
        grid, extra, batch, dims, dtype: Of the tokens.
        std (float): Deviation of the weights.
    """
    bank = AdapterBank()
    learns = learns or [False] * len(adapters)
    occupied = occupied or [SLOTS] * len(adapters)
    for index, (cfg, slots) in enumerate(zip(adapters, occupied)):
        bank.add(f'm{index}', cfg, {slot: dims for slot in slots})
        fill(bank.members[f'm{index}'], std, seed=index)
        bank.members[f'm{index}'].requires_grad_(learns[index])
    bank.to(dtype).eval()
    made = None
    if fusion is not None:
        modules = {n: bank.dims_of(n) for n in bank.names}
        made = build_fusion(fusion, modules).to(dtype)
        fill(made, 1., seed=5)
    generator = torch.Generator().manual_seed(1)
    length = extra + grid[0] * grid[1]
    inputs = {
        slot: torch.randn(batch, length, dims,
                          generator=generator, dtype=torch.float64).to(dtype)
        for slot in SLOTS
    }
    return Case(bank, inputs, grid, extra, made, task)

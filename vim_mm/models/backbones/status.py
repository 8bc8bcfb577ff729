# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is plugged into a backbone, as data and as a table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Union

from rich.console import Console
from rich.table import Table
from torch import nn

if TYPE_CHECKING:
    from .vim_backbone import ViMBackbone

#: Of a module some of whose parameters learn.
IRREGULAR = 'irregular'


@dataclass(frozen=True)
class ModuleStatus:
    """One module of a bank.

    Attributes:
        name (str): Its name.
        kind (str): Type of its adapters.
        slots (list[str]): The slots it occupies.
        trained (int): Number of its parameters that learn.
        stored (int): Number of its parameters, as in a zoo.
        active (bool): Whether it takes part in the next pass.
        learns (bool | str): Whether its parameters learn; 'irregular' if only
            some do.
    """
    name: str
    kind: str
    slots: List[str]
    trained: int
    stored: int
    active: bool
    learns: Union[bool, str]


@dataclass(frozen=True)
class Status:
    """All of a :class:`ViMBackbone`.

    Attributes:
        trunk_type (str): Class of the trunk.
        slots (list[str]): All slots, occupied or not.
        modules (list[ModuleStatus]): The modules, in order.
        fusion (str, optional): Type of the fusion.
        tasks (list[str]): Its tasks.
        task (str, optional): The one that runs.
        learning (list[str]): Those that learn.
        trunk (int): Number of the trunk's parameters.
        trained (int): Number of all parameters that learn.
        stored (int): Number of all parameters in a checkpoint.
    """
    trunk_type: str
    slots: List[str]
    modules: List[ModuleStatus]
    fusion: Optional[str]
    tasks: List[str]
    task: Optional[str]
    learning: List[str]
    trunk: int
    trained: int
    stored: int

    def __str__(self) -> str:
        """A table of the modules, above the totals and tasks."""
        table = Table(title=f'{self.trunk_type}, {len(self.slots)} slots')
        for heading in ('module', 'kind', 'slots', 'trained', 'stored',
                        'active', 'learns'):
            number = heading in ('slots', 'trained', 'stored')
            table.add_column(heading, justify='right' if number else 'left')
        for module in self.modules:
            table.add_row(module.name, module.kind, str(len(module.slots)),
                          f'{module.trained:,}', f'{module.stored:,}',
                          _answer(module.active), _answer(module.learns))
        # wide enough that no cell is cut, whatever the terminal
        console = Console(width=160, color_system=None)
        with console.capture() as capture:
            console.print(table)
        lines = [capture.get().rstrip(),
                 f'parameters: trunk {self.trunk:,}, trained '
                 f'{self.trained:,}, stored {self.stored:,}']
        if self.fusion is not None:
            lines.append(f'{self.fusion}: tasks {", ".join(self.tasks)}; runs '
                         f'{self.task}; learns '
                         f'{", ".join(self.learning) or "none"}')
        return '\n'.join(lines)


def status_of(backbone: 'ViMBackbone') -> Status:
    """See :meth:`ViMBackbone.status`."""
    bank, fusion = backbone.bank, backbone.fusion
    running = backbone.running
    modules = []
    for name in bank.names:
        part = bank.members[name]
        trained, stored = _count(part, True), _count(part)
        learns = IRREGULAR if 0 < trained < stored else trained > 0
        kind = str(bank.adapter_cfg(name)['type']).split('.')[-1]
        modules.append(
            ModuleStatus(name, kind, bank.slots_of(name), trained, stored,
                         name in running, learns))
    trunk = _count(backbone.trunk)
    stored = _count(backbone) - (0 if backbone.save_trunk else trunk)
    return Status(
        trunk_type=type(backbone.trunk).__name__,
        slots=list(backbone.slots),
        modules=modules,
        fusion=None if fusion is None else type(fusion).__name__,
        tasks=backbone.tasks,
        task=backbone.task,
        learning=list(backbone.learning),
        trunk=trunk,
        trained=_count(backbone, True),
        stored=stored)


def _count(part: nn.Module, learning: bool = False) -> int:
    return sum(p.numel() for p in part.parameters()
               if p.requires_grad or not learning)


def _answer(value: Union[bool, str]) -> str:
    return {True: 'yes', False: 'no'}.get(value, str(value))

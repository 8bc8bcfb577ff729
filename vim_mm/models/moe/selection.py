# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which of its functions a trunk with experts runs, beside its tensors.

With another router, other experts per token or another scale of gates the
same weights are another trunk to what was trained beside it.
"""

from typing import Any, Dict, Mapping, Sequence

from torch import nn

from vim_mm.zoo import ModuleCard, ZooError
from .moe_layer import MoELayer, moe_layers

#: where a card's ``trunk`` says it; cards from before do not
KEY = 'selection'


def selection_of(trunk: nn.Module, tasks: Sequence[str] = ()) -> Dict:
    """What a trunk runs: ``task``, ``k`` and ``gate_scale``.

    Each is one value, or a list of those of all layers if they differ.

    Args:
        trunk (nn.Module): The trunk; nothing is found without experts.
        tasks (Sequence[str]): Tasks that choose the router: no single one is
            selected if it has routers of several of them.
    """
    layers = list(moe_layers(trunk).values())
    if not layers:
        return {}
    found = dict(
        task=_common([layer.task for layer in layers]),
        k=_common([layer.k for layer in layers]),
        gate_scale=_common([float(layer.gate_scale) for layer in layers]))
    if len(_chosen(layers, tasks)) > 1:
        del found['task']
    return found


def check_selection(card: ModuleCard,
                    trunk: nn.Module,
                    tasks: Sequence[str] = ()) -> None:
    """Refuse a trunk that runs something else than a module was trained with.

    Args:
        card (ModuleCard): Of the module.
        trunk (nn.Module): The trunk.
        tasks (Sequence[str]): Tasks that choose the router, beside the one
            that is selected.

    Raises:
        ZooError: If the router, ``k`` or ``gate_scale`` differs.
    """
    stored = card.trunk.get(KEY)
    if not isinstance(stored, Mapping):
        return
    own = selection_of(trunk)
    for key, theirs in stored.items():
        mine = own.get(key)
        chosen = _chosen(moe_layers(trunk).values(), tasks)
        if mine != theirs and not (key == 'task' and theirs in list(chosen)):
            raise ZooError(
                f'Module {card.name!r} does not fit this trunk: it was '
                f'trained with the {key} {theirs!r} of its experts, and here '
                f'it is {mine!r}; set `{key}={theirs!r}` of the trunk, or '
                'take a module for this one.')


def _chosen(layers: Sequence[MoELayer], tasks: Sequence[str]) -> set:
    return {
        task
        for task in tasks for layer in layers if task in layer.tasks
    }


def _common(values: list) -> Any:
    return values[0] if values == values[:1] * len(values) else values

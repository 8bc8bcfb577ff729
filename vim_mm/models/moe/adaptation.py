# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""An adapted mixture of experts as a module of a zoo.

The module holds what the adaptation has that the trunk has not: the task's
router of each layer, and the experts that were trained or are new. Of the
others it says which of the trunk's they are, so that pruning is a list.
"""

import hashlib
from typing import Any, Dict, List, Mapping, Optional

import torch
from torch import Tensor, nn

from vim_mm.utils.meta import check_shapes, shapes, without_memory
from vim_mm.zoo import ModuleCard, Zoo, ZooError, trunk_fingerprint
from .experts import Experts
from .moe_layer import MoELayer, moe_layers
from .routers import Router
from .selection import check_selection, selection_of
from .structure import check_columns, structure_in
from .surgery import experts_of

KIND = 'MoEAdaptation'
#: how often a task may have the same expert
COPIES = 4
#: stands for the whole trunk, see :func:`trunk_fingerprint`
_WHOLE = ['outputs.0']


def save_adaptation(adapted: nn.Module,
                    base: nn.Module,
                    name: str,
                    zoo: str,
                    head: Optional[Mapping[str, Tensor]] = None,
                    overwrite: bool = False,
                    **card_fields: Any) -> ModuleCard:
    """Write what a task has made of a trunk into a zoo.

    Args:
        adapted (nn.Module): The adapted trunk; the task that runs is meant.
        base (nn.Module): The trunk as it was before, of the same moe file.
        name (str): Name of the module.
        zoo (str): Directory of the zoo.
        head (Mapping[str, Tensor], optional): State of neck and head.
        overwrite (bool): Replace a module of that name. Defaults to False.
        **card_fields: What else the card says, see :func:`save_module`.

    Returns:
        ModuleCard: As written.

    Raises:
        ValueError: If the trunk has no layer of experts.
        ZooError: If more than routers and experts was trained, or the module
            cannot be written.
    """
    layers, before = moe_layers(adapted), experts_of(base)
    _check_shared(adapted, base, name)
    tensors: Dict[str, Tensor] = {}
    found = {key: _difference(layers[key], before[key]) for key in layers}
    for key, parts in found.items():
        tensors.update({f'{key}.{part}': v for part, v in parts.items()})
    first = next(iter(layers.values()))
    whole = dict(
        card_fields.pop('trunk', {}),
        type=type(base).__name__,
        fingerprint=trunk_fingerprint(base, list(layers)),
        # it has a router and `k` of its own
        selection=dict(gate_scale=selection_of(base)['gate_scale']))
    card = ModuleCard(
        name=name,
        kind=KIND,
        adapter=dict(
            type=KIND,
            task=first.task,
            k=[layer.k for layer in layers.values()],
            whole_trunk=trunk_fingerprint(base, _WHOLE)),
        slots=list(layers),
        dims={
            key: layer.dims
            for key, layer in layers.items()
        },
        trunk=whole,
        **card_fields)
    return Zoo(zoo).save(card, tensors, head, overwrite)


def load_adaptation(trunk: nn.Module, zoo: str, name: str) -> str:
    """Make of a trunk what a module says, in place.

    Args:
        trunk (nn.Module): The trunk of the moe file that it was made from.
        zoo (str): Directory of the zoo.
        name (str): Name of the module.

    Returns:
        str: The task, whose routers are the only ones then.

    Raises:
        ZooError: If the module is unknown, damaged, of another kind or of
            another trunk; then nothing has changed.
    """
    card, tensors = Zoo(zoo).load(name)
    layers = moe_layers(trunk)
    if card.kind != KIND:
        raise ZooError(
            f'Module {name!r} is a {card.kind}, no adaptation of experts; '
            'load it with ViMBackbone (`modules=[…]`).')
    widths = {key: layer.dims for key, layer in layers.items()}
    Zoo(zoo).check_trunk(card, trunk, widths)
    check_selection(card, trunk)
    task, k = card.adapter.get('task'), card.adapter.get('k')
    if trunk_fingerprint(trunk, _WHOLE) != card.adapter.get('whole_trunk'):
        raise ZooError(
            f'Module {name!r} does not fit this trunk: experts are the same, '
            'but other layers differ; load the moe file that it was trained '
            f'with: {card.trunk}.')
    if card.slots != list(layers) or not isinstance(
            task, str) or not isinstance(k, list) or len(k) != len(
                layers) or not all(type(each) is int for each in k):
        raise ZooError(f'Module {name!r} does not say its task and `k` for '
                       f'all of the {len(layers)} layers of experts; get it '
                       'again from its source.')
    states = {
        key:
        _state(
            layer, task, each, {
                part[len(key) + 1:]: value
                for part, value in tensors.items()
                if part.startswith(f'{key}.')
            }, name)
        for (key, layer), each in zip(layers.items(), k)
    }
    for (key, layer), each in zip(layers.items(), k):
        state, stored = states[key]
        layer.restructure(structure_in(shapes(state)), [task])
        # an attention has layers of its own, which stay
        rest = {
            part: value
            for part, value in layer.state_dict().items()
            if not part.startswith(('routers.', 'experts.'))
        }
        layer.load_state_dict({**rest, **state})
        layer.experts.split(stored)
        layer.set_k(each)
    return task


def _check_shared(trunk: nn.Module, base: nn.Module, name: str) -> None:
    layers = moe_layers(base)
    now = trunk.state_dict()
    if moe_layers(trunk).keys() != layers.keys():
        raise ZooError(f'Module {name!r} belongs to a trunk with other layers '
                       'of experts; give the moe file that it was made from.')
    inside = tuple(f'{key}.{part}.' for key in layers
                   for part in ('routers', 'experts'))
    changed = [
        key for key, value in base.state_dict().items()
        if not key.startswith(inside)
        and not (key in now and torch.equal(now[key].cpu(), value.cpu()))
    ]
    if changed:
        raise ZooError(
            f'{len(changed)} tensors beside routers and experts were trained, '
            f"such as '{changed[0]}', so {name!r} is no module beside its "
            'trunk; train routers and experts alone (`train` of load_moe), or '
            'keep the whole trunk as a moe file (`vim-mm moe extract`).')


def _difference(layer: MoELayer, base: MoELayer) -> Dict[str, Tensor]:
    """What a layer's running task has that the layer had not before."""
    router = layer.router
    known = router.num_experts
    place = {digest: i for i, digest in enumerate(_digests(base.experts))}
    source = [place.get(d, -1) for d in _digests(layer.experts)[:known]]
    stored = [i for i, found in enumerate(source) if found < 0]
    group = layer.experts.gathered(stored)
    found = {
        f'experts.{key}': value
        for key, value in group.state_dict().items()
    }
    found.update({
        f'router.{key}': v
        for key, v in router.state_dict().items()
    })
    if router.columns is None:
        found['router.columns'] = torch.arange(router.width)
    found['source'] = torch.tensor(source)
    return found


def _digests(experts: Experts) -> List[bytes]:
    """What tells each expert from others."""
    parts = [
        part.detach().float().cpu().numpy()
        for part in experts.weights(len(experts))
    ]
    return [
        hashlib.sha256(b''.join(part[i].tobytes() for part in parts)).digest()
        for i in range(len(experts))
    ]


def _state(layer: MoELayer, task: str, k: int, parts: Dict[str, Tensor],
           name: str) -> tuple:
    """The state of a layer as a module says, and which experts it brings."""
    try:
        source = parts['source']
        stored = _stored(layer, source, parts)
        state = {}
        for key, value in layer.experts.gathered(
                source.clamp(min=0).tolist()).state_dict().items():
            given = parts[f'experts.{key}']
            if given.shape != value[stored].shape:
                raise ValueError(f'its experts.{key} has another shape')
            value[stored] = given.to(value)
            state[f'experts.groups.0.{key}'] = value
        for key, value in parts.items():
            if key.startswith('router.'):
                state[f'routers.{task}.{key[len("router."):]}'] = value
        structure = structure_in(shapes(state))
        shape = structure.routers[task]
        if shape.kept != len(source):
            raise ValueError('its router chooses from other experts')
        check_columns(structure, state)
        if shape.kept == shape.width:
            del state[f'routers.{task}.columns']
        _check_router(layer, task, k, state)
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        raise ZooError(f'Module {name!r} cannot be used: '
                       f'{str(error).rstrip(".")}; get it again from its '
                       'source.') from error
    return state, stored.tolist()


def _check_router(layer: MoELayer, task: str, k: int,
                  state: Mapping[str, Tensor]) -> None:
    """Compare a router with what its layer would build, without memory.

    Raises:
        ValueError: If it differs, or cannot choose ``k`` experts.
    """
    start = f'routers.{task}.'
    given = {
        key: value.shape
        for key, value in state.items() if key.startswith(start)
    }
    with without_memory():
        router = Router.shaped(layer.dims, structure_in(given).routers[task])
    check_shapes(shapes(router.state_dict(prefix=start)), given)
    if not 1 <= k <= router.num_places:
        raise ValueError(f'its `k` is {k}, and there are {router.num_places} '
                         'experts to choose from')


def _stored(layer: MoELayer, source: Tensor, parts: Dict[str,
                                                         Tensor]) -> Tensor:
    """Which of a task's experts a module brings; the others are the trunk's.

    Raises:
        ValueError: If it says anything else.
    """
    if source.ndim != 1 or source.dtype != torch.int64:
        raise ValueError('its source is no row of numbers')
    stored = (source < 0).nonzero().flatten()
    if (source >= len(layer.experts)).any() or len(stored) != len(
            parts['experts.w1']):
        raise ValueError('its source names experts that there are not')
    # copies that were not trained are the same expert again
    if len(source) > COPIES * (len(layer.experts) + len(stored)):
        raise ValueError(f'its source names {len(source):,} experts')
    return stored

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""From a trained model to a module in a zoo."""

import logging
import os.path as osp
import re
from typing import Any, Dict, Iterable, Mapping, Optional, Union

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from .card import ModuleCard, ZooError
from .fingerprint import trunk_fingerprint
from .parts import of_parts, together
from .zoo import Zoo


def save_module(backbone: nn.Module,
                name: str,
                zoo: Union[Zoo, str],
                head: Optional[Mapping[str, Tensor]] = None,
                head_parts: Iterable[dict] = (),
                save_as: Optional[str] = None,
                overwrite: bool = False,
                **card_fields: Any) -> ModuleCard:
    """Write a module of a :class:`ViMBackbone` into a zoo.

    Args:
        backbone: The backbone, with the weights of its trunk loaded.
        name: Name of the module in the backbone's bank.
        zoo: The zoo or its directory.
        head: State of the task head trained with it; see :func:`head_state`.
        head_parts: What the head was made of, beside the module; see
            :func:`vim_mm.models.head_origin.head_parts`.
        save_as: Its name in the zoo; the same when None.
        overwrite: Whether to replace a module of that name.
        **card_fields: What else the card says (``task``, ``dataset``,
            ``metrics``, ``licence``, …). ``trunk`` may hold a ``description``
            or ``weights``; its type, its fingerprint and the name of the file
            it was loaded from are filled in.

    Returns:
        The card as written.

    Raises:
        ZooError: If a card has no such field, or the module cannot be
            written; see :meth:`Zoo.save`.
    """
    allowed = ('trunk', 'task', 'dataset', 'num_train', 'metrics', 'licence',
               'classes', 'image_size', 'version', 'training')
    unknown = sorted(set(card_fields).difference(allowed))
    if unknown:
        raise ZooError(f'The card of module {name!r} cannot be given '
                       f'{", ".join(unknown)}; it takes '
                       f'{", ".join(allowed)}.')
    _check_head_names(name, head or {})
    if getattr(backbone.bank, 'adds_nothing', _never)(name):
        print_log(
            f'Module {name!r} adds nothing to its trunk, as a fresh one does, '
            'and is saved so: save it once it is trained, or load its '
            'checkpoint into the backbone first.',
            logger='current',
            level=logging.WARNING)
    zoo = zoo if isinstance(zoo, Zoo) else Zoo(zoo)
    parts = together([backbone.made_of.get(name, []), head_parts])
    card_fields = of_parts(card_fields, parts)
    adapter = backbone.bank.adapter_cfg(name)
    slots = list(backbone.bank.slots_of(name))
    trunk = card_fields.pop('trunk', {})
    if backbone.trunk_weights:
        file = osp.basename(backbone.trunk_weights)
        trunk = dict(dict(weights=file), **trunk)
    trunk = dict(
        trunk,
        type=type(backbone.trunk).__name__,
        fingerprint=trunk_fingerprint(backbone.trunk, slots))
    if backbone.selection:
        trunk.update(selection=backbone.selection)
    card = ModuleCard(
        name=save_as or name,
        kind=str(adapter.get('type')).split('.')[-1],
        adapter=adapter,
        slots=slots,
        dims=backbone.bank.dims_of(name),
        trunk=trunk,
        **card_fields)
    return zoo.save(card, backbone.bank.export(name), head, overwrite)


def _never(_: str) -> bool:
    return False


def _check_head_names(name: str, head: Iterable[str]) -> None:
    """Refuse the state of a whole model in place of its head's.

    Raises:
        ZooError: If it is one.
    """
    others = [key for key in head if not is_head(key)]
    if others:
        raise ZooError(
            f'The head of module {name!r} would hold {len(others)} tensors '
            f'that belong to no head, such as {others[0]!r}; give '
            '`head=head_state(model)`.')


def is_head(key: str) -> bool:
    """Whether a tensor of an mm* model belongs to a module's head.

    All outside the backbone does, but for the weights of streams, which
    belong to a task and not to a module.
    """
    return not re.match(r'backbone\.|neck\.(0\.)?fusion\.', key)


def head_state(model: nn.Module) -> Dict[str, Tensor]:
    """Return the state of neck, head and the like, see :func:`is_head`.

    Args:
        model: A detector, segmentor or classifier.

    Returns:
        Neck, head and the like by their names in the model: contiguous copies
        on the CPU.
    """
    if is_model_wrapper(model):
        model = model.module
    return {
        key: value.detach().cpu().contiguous().clone()
        for key, value in model.state_dict().items()
        if is_head(key)
    }

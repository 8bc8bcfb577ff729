# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checkpoints of a backbone leave its trunk out, and know which it was."""

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from mmengine.model import initialize
from torch import Tensor

from vim_mm.zoo import trunk_fingerprint
from .configs import pretrained
from .trunk import is_meta
from .weights import watched

if TYPE_CHECKING:
    from .planned_trunk import PlannedTrunk
    from .slotted_trunk import SlottedTrunk


def fingerprint_tensor(backbone: 'PlannedTrunk') -> Tensor:
    """The trunk's fingerprint as 32 bytes, zeros on the meta device.

    It is that of the backbone's own slot pattern, so that a module which
    joins with slots of its own does not make the trunk look another one. Of a
    trunk with experts it tells what is selected, too.
    """
    if is_meta(backbone.trunk):
        return torch.zeros(32, dtype=torch.uint8)
    digest = _digest(backbone)
    if backbone.selection:
        selected = json.dumps(backbone.selection, sort_keys=True)
        digest = hashlib.sha256(digest + selected.encode()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


def _digest(backbone: 'PlannedTrunk') -> bytes:
    return bytes.fromhex(
        trunk_fingerprint(backbone.trunk, backbone.own_slots()))


def _is_older(backbone: 'PlannedTrunk', stored: Tensor) -> bool:
    """Whether it is of the same weights, from when selections did not count.
    """
    return bool(backbone.selection) and not is_meta(
        backbone.trunk) and bytes(stored.tolist()) == _digest(backbone)


def leave_trunk_out(backbone: 'PlannedTrunk', state_dict: dict, prefix: str,
                    _: dict) -> None:
    """State dict hook of a backbone."""
    if backbone.save_trunk:
        return
    for key in list(state_dict):
        if key.startswith(f'{prefix}trunk.'):
            del state_dict[key]


def drop_baked(backbone: 'PlannedTrunk', state_dict: dict, prefix: str,
               *_) -> None:
    """Hook before loading: leave out what a baked module stands for.

    mmengine would list every tensor of it as unexpected.
    """
    if not backbone.baked_from:
        return
    members = f'{prefix}bank.members.'
    own = tuple(f'{members}{name}.' for name in backbone.bank.names)
    gone = (members, f'{prefix}fusion.') if backbone.fusion is None \
        else (members, )
    for key in list(state_dict):
        if key.startswith(gone) and not key.startswith(own):
            del state_dict[key]


def keep_trunk(backbone: 'PlannedTrunk', state_dict: dict, prefix: str,
               *_) -> None:
    """Hook before loading: without a trunk in the file, keep ours.

    A trunk that was given no weights takes those of the file.

    Raises:
        ValueError: If ours is not the one of the checkpoint.
    """
    kept = any(key.startswith(f'{prefix}trunk.') for key in state_dict)
    if kept and backbone.trunk_weights is None:
        return
    stored = state_dict.get(f'{prefix}trunk_fingerprint')
    own = backbone.trunk_fingerprint.cpu()
    if stored is not None and not torch.equal(stored.cpu(), own) \
            and not _is_older(backbone, stored):
        selected = ', '.join(f'{key} {value!r}'
                             for key, value in backbone.selection.items())
        selected = f', or select its experts as then (here: {selected})' \
            if selected else ''
        raise ValueError(
            'This checkpoint was trained beside another trunk (its '
            f'fingerprint begins with {bytes(stored[:4].tolist()).hex()},'
            f' this {type(backbone.trunk).__name__} has '
            f'{bytes(own[:4].tolist()).hex()}); point '
            '`model.backbone.trunk.init_cfg.checkpoint` at the weights '
            f'it was trained with{selected}.')
    if kept:
        return
    # not through state_dict(): our own hook would leave the trunk out
    for key, value in backbone.trunk.state_dict().items():
        state_dict[f'{prefix}trunk.{key}'] = value


def initialise(backbone: 'SlottedTrunk') -> None:
    """Apply the ``init_cfg`` of a backbone of ours.

    Raises:
        ValueError: If it names a file in which nothing is of modules or
            gates; mmengine would pass over it.
    """
    with watched(backbone) as loaded:
        initialize(backbone, backbone.init_cfg)
    source = pretrained(dict(init_cfg=backbone.init_cfg))
    if source and not set(backbone.state_dict()) - set(loaded.missing):
        raise ValueError(
            f"`model.backbone.init_cfg` names '{source['checkpoint']}', in "
            'which nothing is of modules or gates; weights of a trunk are '
            'named in `model.backbone.trunk.init_cfg`.')

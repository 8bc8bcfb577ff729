# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checkpoints of a backbone leave its trunk out, and know which it was."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vim_mm.zoo import trunk_fingerprint
from .trunk import is_meta

if TYPE_CHECKING:
    from .planned_trunk import PlannedTrunk
    from .slotted_trunk import SlottedTrunk


def fingerprint_tensor(backbone: 'SlottedTrunk') -> Tensor:
    """The trunk's fingerprint as 32 bytes, zeros on the meta device.

    It is that of the backbone's own slot pattern, so that a module which
    joins with slots of its own does not make the trunk look another one.
    """
    if is_meta(backbone.trunk):
        return torch.zeros(32, dtype=torch.uint8)
    digest = trunk_fingerprint(backbone.trunk, backbone.own_slots())
    return torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8)


def leave_trunk_out(backbone: 'SlottedTrunk', state_dict: dict, prefix: str,
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


def keep_trunk(backbone: 'SlottedTrunk', state_dict: dict, prefix: str,
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
    if stored is not None and not torch.equal(stored.cpu(), own):
        raise ValueError(
            'This checkpoint was trained beside another trunk (its '
            f'fingerprint begins with {bytes(stored[:4].tolist()).hex()},'
            f' this {type(backbone.trunk).__name__} has '
            f'{bytes(own[:4].tolist()).hex()}); point '
            '`model.backbone.trunk.init_cfg.checkpoint` at the weights '
            'it was trained with.')
    if kept:
        return
    # not through state_dict(): our own hook would leave the trunk out
    for key, value in backbone.trunk.state_dict().items():
        state_dict[f'{prefix}trunk.{key}'] = value

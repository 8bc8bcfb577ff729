# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a checkpoint must hold to be judged or served."""

import logging
import re
from typing import Dict, Iterable, Iterator, Optional, Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor

from vim_mm.utils.messages import short
from .backbones import ViMBackbone
from .fusion import BaseFusion
from .multitask import MultiTaskModel


def check_fit(model: BaseModel,
              state: Dict[str, Tensor],
              file: str,
              every_task: bool = False,
              whole: bool = False,
              own: Optional[Dict[str, Tensor]] = None) -> None:
    """Refuse a checkpoint of something else: its model would predict noise.

    A zoo's module and head files lie beside checkpoints and look like them,
    and another task's checkpoint fits but for what this one has learned. It
    may lack the trunk, frozen modules of a zoo and the gates of tasks that
    are not selected.

    Args:
        model (BaseModel): As its config builds it.
        state (dict[str, Tensor]): The checkpoint's, without the prefix of a
            data-parallel wrapper.
        file (str): Its name, for messages.
        every_task (bool): Whether a task is selected later, so that the gates
            of all of them count. Defaults to False.
        whole (bool): Whether nothing may be missing, whatever the backbone;
            so it is for those of several tasks. Defaults to False.
        own (dict[str, Tensor], optional): The state of the whole model, where
            processes hold a part of each tensor. Defaults to None.

    Raises:
        ValueError: If something is missing, has another shape or is no
            number, or modules or gates in it would be dropped.
    """
    own = model.state_dict() if own is None else own
    _refuse_broken(model, own, state, file)
    if _has_backbone(own) and not _has_backbone(state):
        raise ValueError(
            f'{file} holds nothing of a backbone, so it is no checkpoint of a '
            'whole model; give one that a run of this config wrote (modules '
            'of a zoo are named in `model.backbone.modules`).')
    has_bank = isinstance(getattr(model, 'backbone', None), ViMBackbone)
    if not (has_bank or whole or isinstance(model, MultiTaskModel)):
        _refuse_dropped(model, own, state, file)
        return
    spare = tuple(_spare(model, every_task)) if has_bank else ()
    unlike = [
        key for key, value in own.items()
        if not key.startswith(spare) and not _holds(state, key, value)
    ]
    if unlike:
        raise ValueError(
            f'{file} lacks {len(unlike)} tensors of the model, or holds them '
            f'in another shape, such as {unlike[:3]}: it is of another model; '
            'give a checkpoint that a run of this config wrote.')
    _refuse_dropped(model, own, state, file)


def _refuse_broken(model: BaseModel, own: Iterable[str],
                   state: Dict[str, Tensor], file: str) -> None:
    """Refuse weights that are no numbers: so would be whatever they give."""
    learned = {name for name, _ in model.named_parameters()}
    for key in own:
        value = state.get(key)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        # masks that are kept with the weights may hold infinity
        bad = ~value.isfinite() if key in learned else value.isnan()
        if bad.any():
            raise ValueError(
                f'{file} holds numbers that are none, such as '
                f'{float(value[bad][0])} in {key}: its training has broken '
                'down; give an earlier checkpoint.')


def _refuse_dropped(model: BaseModel, own: Iterable[str],
                    state: Iterable[str], file: str) -> None:
    """Refuse a checkpoint whose modules or gates the model has no place for.

    mmengine would drop them with a line in the log, and what is judged would
    be the trunk without them. A module that was baked from them may stand in
    their place.
    """
    if not any(key.endswith('trunk_fingerprint') for key in state):
        return  # another library's own
    own, parts = map(_learned_parts, (own, state))
    dropped = {key: part for key, part in parts.items() if key not in own}
    baked = getattr(getattr(model, 'backbone', None), 'baked_from', set())
    modules = {key.rpartition('.')[2] for key in dropped} - {'fusion'}
    if dropped and not (baked and (baked & modules or not modules)):
        raise ValueError(
            f'{file} holds {" and ".join(sorted(set(dropped.values())))}, '
            'which the model has no place for and would drop; give the config '
            'of the run that wrote it.')


def _learned_parts(keys: Iterable[str]) -> Dict[str, str]:
    """Modules and fusions that keys belong to, and what they are called."""
    found = {}
    for key in keys:
        match = re.match(r'(.*\b(bank\.members\.([\w-]+)|fusion))\.', key)
        if match:
            found[match[1]] = f"the module '{match[3]}'" if match[3] \
                else 'gates'
    return found


def check_classes(own: Sequence[str], meta: dict, file: str) -> None:
    """Refuse a checkpoint that numbers the classes of the data otherwise.

    One that calls them otherwise gets a line.

    Data sets of folders number them as they sort, whatever the head.

    Args:
        own (Sequence[str]): Classes of the data set, if it names any.
        meta (dict): The checkpoint's, with its ``dataset_meta``.
        file (str): Its name, for messages.

    Raises:
        ValueError: If both name a class, and number it otherwise.
    """
    own = list(map(str, own))
    stored = (meta.get('dataset_meta') or {}).get('classes') or []
    stored = list(map(str, stored))
    moved = [name for name in own
             if name in stored and own.index(name) != stored.index(name)]
    if moved:
        raise ValueError(
            f'{file} numbers its classes {short(stored)}, and the test set '
            f"{short(own)}: '{moved[0]}' is {stored.index(moved[0])} in one "
            f'and {own.index(moved[0])} in the other. Give the data set the '
            'classes of the checkpoint in `metainfo`, name folders so that '
            'they sort in its order, or list the images in an `ann_file`.')
    others = [name for name in own if name not in stored]
    if stored and others:
        print_log(
            f'{file} names its classes {short(stored)}, and the data set '
            f'{short(own)}, so {short(others[0])} is what it calls '
            f'{short((stored + ["none"] * len(own))[own.index(others[0])])}; '
            'that is right if classes were renamed.',
            logger='current',
            level=logging.WARNING)


def _has_backbone(state: Dict[str, Tensor]) -> bool:
    return any('backbone.' in key for key in state)


def _holds(state: Dict[str, Tensor], key: str, own: Tensor) -> bool:
    # modules and gates of another shape are refused as they load, in words of
    # their own
    return key in state and ('fusion.' in key or 'bank.members.' in key
                             or state[key].shape == own.shape)


def _spare(model: BaseModel, every_task: bool) -> Iterator[str]:
    """What keys begin with that a checkpoint may lack."""
    yield 'backbone.trunk.'
    # other libraries' checkpoints of the same model have none
    yield 'backbone.trunk_fingerprint'
    for name, module in model.backbone.bank.members.items():
        if not any(param.requires_grad for param in module.parameters()):
            yield f'backbone.bank.members.{name}.'
    for prefix, fusion in model.named_modules():
        if not isinstance(fusion, BaseFusion):
            continue
        yield f'{prefix}.strength_of_'  # up to 0.1.0 there was none
        if every_task:
            continue
        others = set(fusion.tasks) - {fusion.selected}
        for key in fusion.state_dict():
            # parameters are `logits.<task>`, names `modules_of_<task>`
            if {key.rpartition('.')[2], key.partition('_of_')[2]} & others:
                yield f'{prefix}.{key}'

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What the weights of a model do not tell of its function.

The scale of a module, the activation of an adapter or the normalisation of
images are in no tensor, so a checkpoint fits whatever they are. Its ``meta``
notes them under :data:`KEY`, by the names of the model's parts, and they are
compared wherever a checkpoint is loaded, by mmengine's ``load_checkpoint`` and
so by ``init_detector`` and the like, too. One without notes loads all the
same.

Parts that have such settings say so in ``function_settings()``: dicts by the
name of what is inside, '' for the part itself.
"""

import json
import logging
import re
from collections.abc import Mapping
from functools import wraps
from typing import Any, Dict, List, Optional, Tuple

from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from vim_mm.utils.checkpoint_form import CheckpointError
from vim_mm.utils.messages import short
from vim_mm.utils.state_dicts import plain_name

KEY = 'vim_mm_function'
#: Where a card's ``trunk`` says how images were normalised.
NORMALIZATION = 'normalization'
Notes = Dict[str, Dict[str, Any]]
#: Settings that people change with a purpose once a model is trained, and
#: parts of which any may be meant: it is told.
MAY_DIFFER = ('fusion', 'top_k', 'weights', 'k', 'gate_scale', 'mean', 'std',
              'channels', 'sources', 'scales', 'num_extra_tokens')
_TRUNK = re.compile(r'(.*\.)?backbone\.trunk')
_MODULE = re.compile(r'(.*)\bbank\.members\.([^.]+)')


def function_notes(model: nn.Module) -> Notes:
    """What a checkpoint of a model notes of it, in plain JSON types.

    Nothing, if no part of it is ours.
    """
    notes: Notes = {}
    ours = False
    for name, part in model.named_modules():
        if '.trunk.' in f'{name}.':  # has a fingerprint of its own
            continue
        say = getattr(part, 'function_settings', None)
        ours |= callable(say)
        found = say() if callable(say) else normalization_in(part)
        for inner, settings in found.items():
            notes['.'.join(filter(None, (plain_name(name), inner)))] = settings
    return json.loads(json.dumps(notes, default=_named, skipkeys=True)) \
        if ours else {}


def _named(value: Any) -> str:
    """A name for what JSON cannot say, the same in each process."""
    return getattr(value, '__qualname__', type(value).__qualname__)


def normalization_in(part: nn.Module) -> Notes:
    """Mean, deviation and order of channels of a data preprocessor."""
    if not isinstance(getattr(part, '_enable_normalize', None), bool):
        return {}
    turned = [getattr(part, key, None) for key in
              ('to_rgb', '_channel_conversion', 'channel_conversion')]
    found: Dict[str, Any] = dict(channels='rgb' if any(turned) else 'bgr')
    for key in ('mean', 'std'):
        value = getattr(part, key, None)
        if part._enable_normalize and isinstance(value, Tensor):
            found[key] = [float(f'{x:.5g}') for x in value.flatten().tolist()]
        else:
            found[key] = None
    return {'': found}


def normalization_of(model: nn.Module) -> Optional[Dict[str, Any]]:
    """How a model normalises images; None if it does not say."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    return normalization_in(preprocessor).get('') if isinstance(
        preprocessor, nn.Module) else None


def trunk_said(model: nn.Module) -> Dict[str, Any]:
    """What a module's card says of its trunk's images, from its model."""
    found = normalization_of(model)
    return {NORMALIZATION: found} if found else {}


def keep_function_notes(checkpoint: Mapping, name: str) -> None:
    """Reduce a checkpoint's notes, in place, to those of one submodel.

    It holds the backbone that all have in common.
    """
    meta = checkpoint.get('meta') or {}
    notes = meta.get(KEY)
    if isinstance(notes, Mapping):
        meta[KEY] = {
            key[len(name) + 1:] if key.startswith(f'{name}.') else key: value
            for key, value in notes.items()
            if str(key).startswith((f'{name}.', 'backbone.'))
        }


def check_function(model: nn.Module, checkpoint: Mapping, file: str) -> None:
    """Compare a model with what a checkpoint notes, which it is to load.

    A line tells of what may be meant.

    Args:
        model (nn.Module): The model.
        checkpoint (Mapping): The checkpoint, or a state dict alone.
        file (str): Its name, for messages.

    Raises:
        CheckpointError: If these are no notes.
        ValueError: If its weights are of another function.
    """
    notes = function_notes(model)
    stored = (checkpoint.get('meta') or {}).get(KEY) or {}
    if not notes:
        return
    if not isinstance(stored, Mapping) or not all(
            isinstance(each, Mapping) for each in stored.values()):
        raise CheckpointError(
            f'{file} says in `{KEY}` of its `meta` something else than '
            'settings of parts of a model: fetch or write it again.')
    told: List[str] = []
    for name, own in notes.items():
        theirs = stored.get(name, {})
        unlike = [key for key in own
                  if key in theirs and theirs[key] != own[key]]
        meant = [key for key in unlike if _may_differ(name, key)]
        if len(meant) < len(unlike):
            raise ValueError(_refusal(name, unlike, theirs, own, file))
        told += [f'{key} of `model.{name}` was {short(theirs[key])} and is '
                 f'{short(own[key])}' for key in meant]
    if told:
        more = f' (and {len(told) - 3} more)' if len(told) > 3 else ''
        print_log(
            f'{file} was trained with other settings than those of this '
            f'model, so its weights may give something else: '
            f'{"; ".join(told[:3])}{more}. Take the settings of its training '
            'unless that is meant.',
            logger='current',
            level=logging.WARNING)


def _may_differ(name: str, key: str) -> bool:
    return not _MODULE.fullmatch(name) and bool(
        key in MAY_DIFFER or _TRUNK.fullmatch(name))


def _refusal(name: str, keys: List[str], theirs: Mapping, own: Mapping,
             file: str) -> str:
    before, here = (', '.join(f'{key}={short(each[key])}' for key in keys)
                    for each in (theirs, own))
    part, where = _called(name)
    return (f'{file} was trained with {before} of {part}, and this model has '
            f'{here}: with that the same weights compute something else. Set '
            f'{before} in `{where}`, or load a checkpoint of this model.')


def _called(name: str) -> Tuple[str, str]:
    """What to call a part, and where its settings are."""
    module = _MODULE.fullmatch(name)
    if module:
        return f"the module '{module[2]}'", f'model.{module[1]}adapter'
    return f'`model.{name}`', f'model.{name}'


def check_modules(model: nn.Module) -> None:
    """Tell of modules of a zoo that learned from other images.

    Args:
        model (nn.Module): A model with a backbone, or of several tasks.
    """
    for name, part in model.named_modules():
        own = normalization_of(part)
        cards = getattr(getattr(part, 'backbone', None), 'normalizations', {})
        for module, theirs in cards.items() if own else ():
            unlike = [key for key in own if key in theirs
                      and theirs[key] != own[key]]
            if not unlike:
                continue
            before, here = (', '.join(f'{key} {short(each[key])}'
                                      for key in unlike)
                            for each in (theirs, own))
            where = '.'.join(filter(None, ('model', plain_name(name))))
            print_log(
                f"Module '{module}' learned from images of {before}, and "
                f'`{where}.data_preprocessor` has {here}: take that of its '
                'training, or expect less of it.',
                logger='current',
                level=logging.WARNING)


def compare_what_is_loaded() -> None:
    """Let mmengine's ``load_checkpoint`` compare as well. Idempotent."""
    original = mmengine_checkpoint._load_checkpoint_to_model
    if hasattr(original, 'compares'):
        return

    @wraps(original)
    def load(model: nn.Module, checkpoint: Mapping, *args: Any,
             **kwargs: Any) -> Any:
        inner = model.module if is_model_wrapper(model) else model
        check_function(inner, checkpoint, 'The checkpoint')
        return original(model, checkpoint, *args, **kwargs)

    load.compares = True
    # a runner holds the original, and its hooks compare
    mmengine_checkpoint._load_checkpoint_to_model = load


compare_what_is_loaded()

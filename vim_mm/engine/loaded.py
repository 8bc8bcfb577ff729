# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a run has from the checkpoint that it starts from.

Hooks that prepare a model before training start its gates, neck and head. A
run that starts from a checkpoint, by ``load_from`` or the ``init_cfg`` of the
whole model, has these already, as they were trained, so hooks leave alone what
the file held.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Dict, Iterable, MutableMapping, Set, Tuple
from weakref import WeakKeyDictionary

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.backbones.configs import is_pretrained
from vim_mm.models.checkpoint_notes import read_notes
from vim_mm.utils.messages import short
from vim_mm.utils.state_dicts import plain_name
from vim_mm.utils.wrappers import unwrap
from .model_parts import saved_model


@dataclass
class _Note:
    """What a file held: its name, and the shape of each tensor."""
    file: str
    shapes: Dict[str, Tuple[int, ...]]


_notes: MutableMapping[Runner, _Note] = WeakKeyDictionary()


def note_loaded(runner: Runner, checkpoint: Mapping, file: str) -> None:
    """Note what a checkpoint holds that a run is about to start from.

    Args:
        runner (Runner): The run.
        checkpoint (Mapping): The checkpoint.
        file (str): Its name, for messages.
    """
    state = checkpoint.get('state_dict', checkpoint)
    shapes = {
        re.sub(r'^module\.', '', key): tuple(value.shape)
        for key, value in state.items() if isinstance(value, Tensor)
    }
    _notes[runner] = _Note(file, shapes)
    model = unwrap(runner.model)
    if isinstance(model, nn.Module) and shapes:
        # where processes hold a part of each tensor, asking one for its state
        # would gather it, and take that part for the whole model
        whole = getattr(getattr(runner, 'strategy', None), 'whole', None)
        own = model.state_dict() if whole is None else whole
        _name_plain_backbones(model, own, shapes, file)
        _check_any(own, dict(model.named_parameters()), shapes, file)


def _check_any(state: Mapping, learned: Mapping, shapes: Mapping,
               file: str) -> None:
    """Refuse to start from a file that gives the model nothing."""
    own = {name: value.shape for values in (state, learned)
           for name, value in values.items() if isinstance(value, Tensor)}
    if own and not any(own.get(name) == shape
                       for name, shape in shapes.items()):
        raise ValueError(
            f"None of the {len(shapes)} tensors in '{file}', such as "
            f'{short(next(iter(shapes)))}, has the name and shape of one of '
            'the model, so nothing would be loaded; let the names begin as '
            'those of the model do (`backbone.`, …), or name a file of '
            'another form where its part is built (`init_cfg`).')


def _name_plain_backbones(model: nn.Module, own: Iterable[str],
                          names: Iterable[str], file: str) -> None:
    """Say that a trunk takes nothing of a whole model of another library."""
    for name, backbone in model.named_modules():
        if not isinstance(backbone, ViMBackbone):
            continue
        prefix = plain_name(name)
        found = {key for key in names if key.startswith(f'{prefix}.')}
        if found.isdisjoint(own) and found and backbone.trunk_weights != file:
            print_log(
                f"'{file}' has {len(found)} tensors of a plain backbone, which"
                f' have no place in `model.{prefix}` and were left out; name '
                f'the file in `model.{prefix}.trunk.init_cfg.checkpoint` to '
                'let the trunk have them.',
                logger='current',
                level=logging.WARNING)


def spared(runner: Runner, who: str, tensors: Iterable[Tensor],
           keep_loaded: bool) -> Set[int]:
    """Which tensors of a model a preparing hook leaves as they were loaded.

    A line of the log says so.

    Args:
        runner (Runner): The run.
        who (str): The name of the hook.
        tensors (Iterable[Tensor]): What it would start: parameters and
            buffers of the run's model.
        keep_loaded (bool): Whether it is to keep anything.

    Returns:
        set[int]: The ``id`` of each.
    """
    if not keep_loaded:
        return set()
    model = unwrap(runner.model)
    note_start(runner)
    note = _notes[runner]
    held = {
        id(value)
        for key, value in model.state_dict(keep_vars=True).items()
        # what is of another shape was not loaded
        if isinstance(value, Tensor)
        and note.shapes.get(key) == tuple(value.shape)
    } if note.shapes else set()
    kept = held.intersection(map(id, tensors))
    if kept:
        runner.logger.info(
            f'{who}: {len(kept)} tensors stay as they are in {note.file}, '
            'from which the run starts; set `keep_loaded=False` of the hook '
            'to start them anew.')
    return kept


def note_start(runner: Runner) -> None:
    """Note what came with the ``init_cfg`` of the whole model, if any.

    A checkpoint that was loaded instead is noted already.
    """
    if runner in _notes:
        return
    model = unwrap(runner.model)
    given = getattr(model, 'init_cfg', None) or []
    for cfg in given if isinstance(given, (list, tuple)) else [given]:
        if is_pretrained(cfg.get('type')) and not cfg.get('prefix'):
            file = cfg['checkpoint']
            loaded = CheckpointLoader.load_checkpoint(file, 'cpu', 'silent')
            read_notes(saved_model(model), loaded, file)
            return note_loaded(runner, loaded, file)
    note_loaded(runner, {}, '')

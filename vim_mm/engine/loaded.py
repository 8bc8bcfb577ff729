# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a run has from the checkpoint of ``load_from``.

Hooks that prepare a model before training start its gates, neck and head. A
run that starts from a checkpoint has these already, as they were trained, so
hooks leave alone what the file held.
"""

import re
from collections.abc import Mapping
from typing import Dict, Iterable, Set, Tuple

from mmengine.runner import Runner
from torch import Tensor

from vim_mm.features.cache import unwrap

_SHAPES, _FILE = 'loaded_shapes', 'loaded_file'


def note_loaded(runner: Runner, checkpoint: Mapping, file: str) -> None:
    """Note what a checkpoint holds that a run is about to start from.

    Args:
        runner (Runner): The run.
        checkpoint (Mapping): The checkpoint.
        file (str): Its name, for messages.
    """
    state = checkpoint.get('state_dict', checkpoint)
    shapes: Dict[str, Tuple[int, ...]] = {
        re.sub(r'^module\.', '', key): tuple(value.shape)
        for key, value in state.items() if isinstance(value, Tensor)
    }
    runner.message_hub.update_info(_SHAPES, shapes, resumed=False)
    runner.message_hub.update_info(_FILE, file, resumed=False)


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
    shapes = runner.message_hub.runtime_info.get(_SHAPES)
    if not keep_loaded or not shapes:
        return set()
    held = {
        id(value)
        for key, value in unwrap(runner.model).state_dict(
            keep_vars=True).items()
        # what is of another shape was not loaded
        if isinstance(value, Tensor) and shapes.get(key) == tuple(value.shape)
    }
    kept = held.intersection(map(id, tensors))
    if kept:
        runner.logger.info(
            f'{who}: {len(kept)} tensors stay as they are in '
            f'{runner.message_hub.runtime_info[_FILE]}, from which the run '
            'starts (`load_from`); set `keep_loaded=False` of the hook to '
            'start them anew.')
    return kept

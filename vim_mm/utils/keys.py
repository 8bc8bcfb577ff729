# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Keys of a whole config that nobody reads, as they are misspelt.

A config may hold names of its own, such as ``train_pipeline``, so mmengine
passes over whatever it does not know.
"""

import inspect
from difflib import get_close_matches

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

#: Names of the first generation of runners, and what stands for them now.
_FORMER = dict(
    resume_from='`load_from` and `resume=True`',
    checkpoint_config='`default_hooks.checkpoint`',
    lr_config='`param_scheduler`')


def check_keys(cfg: Config) -> None:
    """Refuse a key that is nearly one that runners read.

    Args:
        cfg (Config): The config of a run.

    Raises:
        ValueError: If there is one; names what was probably meant.
    """
    known = {
        name for runner in (Runner, FlexibleRunner)
        for name in inspect.signature(runner.__init__).parameters
    }
    for key in sorted(set(cfg) - known):
        if key in _FORMER and cfg[key]:
            raise ValueError(f'`{key}` is read no more; use {_FORMER[key]}.')
        near = get_close_matches(key, known, 1, 0.85)
        # helpers are called `val_evaluator_full` beside `val_evaluator`
        if near and not (near[0] in cfg and key.startswith(near[0])):
            raise ValueError(
                f'Nobody reads `{key}`; perhaps `{near[0]}` is meant. Correct '
                'it, or give a helper another name.')

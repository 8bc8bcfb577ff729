# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Which keys a runner reads of a config, and names that are nearly those."""

import inspect
import logging
from difflib import get_close_matches
from os.path import commonprefix
from typing import Iterable, Set

from mmengine.config import Config
from mmengine.logging import print_log

#: Names of the first generation of runners, and what stands for them now.
FORMER = dict(
    resume_from='`load_from` and `resume=True`',
    checkpoint_config='`default_hooks.checkpoint`',
    lr_config='`param_scheduler`',
    momentum_config='`param_scheduler`',
    samples_per_gpu='`batch_size`',
    workers_per_gpu='`num_workers`')
#: The same, but some configs that the libraries publish still have them.
LEFT_OVER = dict(
    optimizer_config='`optim_wrapper.clip_grad`',
    fp16="`optim_wrapper.type='AmpOptimWrapper'`")
#: Former names that a config may well have as helpers, and what is read now.
HELPERS = dict(
    seed='randomness',
    deterministic='randomness',
    optimizer='optim_wrapper',
    evaluation='val_evaluator',
    data='train_dataloader',
    runner='train_cfg',
    total_epochs='train_cfg')
#: What tools read, and some configs have not.
_OURS = {'activation_checkpointing', 'compile', 'generate', 'load_task',
         'module_card', 'release_card', 'tta_model', 'tta_pipeline', 'zoo'}
#: What mmengine reads where several processes train.
_OF_PROCESSES = {'find_unused_parameters', 'detect_anomalous_params',
                 'model_wrapper_cfg', 'sync_bn'}


def known_keys() -> Set[str]:
    """What a runner reads of a config."""
    # whatever imports it at its top cannot be the first that is imported
    from mmengine.runner import FlexibleRunner, Runner
    return _OF_PROCESSES.union(*(
        inspect.signature(runner.__init__).parameters
        for runner in (Runner, FlexibleRunner)))


def check_new(cfg: Config, options: Iterable[str]) -> None:
    """Look at options of a command line that begin what is not there.

    They change nothing, unless a part of the user's own reads them.

    Args:
        cfg (Config): The config without them.
        options (Iterable[str]): Their keys, such as 'optimizer.lr'.

    Raises:
        ValueError: If one is no more read, or nearly one that is.
    """
    new = [key for key in options if key.partition('.')[0] not in cfg]
    known = known_keys() if new else set()
    for key in new:
        first = key.partition('.')[0]
        now = HELPERS.get(first) or FORMER.get(first)
        if now and first not in known:
            raise ValueError(
                f'--cfg-options give `{key}`, which is read no more; use '
                f'{now if "`" in now else f"`{now}`"}.')
        check_names('', [first], known | {*cfg, *_OURS})
        if first not in known | _OURS:
            _warn(f'--cfg-options give `{key}`, and the config has no '
                  f'`{first}`: it changes nothing, unless a part of your own '
                  'reads it; name the whole path, such as '
                  '`optim_wrapper.optimizer.lr` or `train_cfg.max_epochs`.')


def check_names(where: str,
                keys: Iterable[str],
                known: Iterable[str],
                alike: float = 0.85) -> None:
    """Refuse a name that is nearly a known one.

    Args:
        where (str): What stands before the names, for messages.
        keys (Iterable[str]): The names.
        known (Iterable[str]): Those that are read.
        alike (float): How near is taken for that, of 1. Defaults to 0.85.

    Raises:
        ValueError: If there is one.
    """
    for key in sorted(set(keys) - set(known)):
        near = get_close_matches(key, known, 3, alike)
        if near:
            # of names as near, one that begins alike
            meant = max(near, key=lambda name: len(commonprefix([key, name])))
            raise ValueError(
                f'Nobody reads `{where}{key}`; perhaps `{where}{meant}` is '
                'meant. Correct it, or give a helper another name.')


def _warn(said: str) -> None:
    print_log(said, logger='current', level=logging.WARNING)

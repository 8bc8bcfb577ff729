# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os
import os.path as osp
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path
from typing import Dict, Mapping, Optional, Union

from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from yaml import YAMLError

from .arguments import check_by_task, check_is_config
from .drafts import named
from .known_keys import check_new
from .messages import short


def add_cfg_options(parser: ArgumentParser) -> None:
    """Give a tool ``--cfg-options``, a dict for :func:`read_config`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=_setting,
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config: key=value, key="[a,b]", '
        'key="[(a,b),(c,d)]"')


def _setting(text: str) -> str:
    key, is_pair, value = text.partition('=')
    if not is_pair:
        raise ArgumentTypeError(f'{text!r} is no key=value')
    if value.startswith(('dict(', '{')):
        raise ArgumentTypeError(
            f'{text!r} gives a dict, which would be taken for a text; give '
            f'each of its keys by itself, {key}.KEY=VALUE')
    if any(value.count(a) != value.count(b) for a, b in ('()', '[]')):
        raise ArgumentTypeError(f'{text!r} has a bracket that is not closed; '
                                'put the whole in quotes')
    return text


def read_config(config: Union[str, os.PathLike, Mapping, Config],
                options: Optional[dict] = None) -> Config:
    """A config read from a file, or a copy of one.

    Args:
        config (str | PathLike | Mapping | Config): The file, or what was read
            from it.
        options (dict, optional): Settings to override, as of
            ``--cfg-options``: ``{'model.backbone.zoo': 'zoo'}``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no config, or an option does not fit it.
    """
    if isinstance(config, Config):
        cfg = config.copy()
    elif isinstance(config, Mapping):
        cfg = Config(dict(config))
    elif isinstance(config, (str, os.PathLike)):
        cfg = _read(os.fspath(config))
    else:
        raise ValueError(f'{short(config)} is no config: give the path of a '
                         'file, or a Config.')
    if options:
        check_new(cfg, options)
    try:
        cfg.merge_from_dict(options or {})
    except (AttributeError, KeyError, TypeError) as error:
        said = error.args[0] if error.args else error
        raise ValueError(f'--cfg-options {options} do not fit the config: '
                         f'{said}') from error
    return cfg


def _read(config: str) -> Config:
    if not osp.isfile(config):
        raise FileNotFoundError(
            f'There is no config file {config}: check the path.')
    if not config.endswith(('.py', '.yml', '.yaml', '.json')):
        raise ValueError(f'{config} is no config file: these end in .py, '
                         '.yml, .yaml or .json.')
    cfg = config_of(config)
    if 'model' not in cfg:
        raise ValueError(f'The config {config} has no `model`; give one of a '
                         'whole run.')
    return cfg


def config_of(config: str) -> Config:
    """What a config file says, of a whole run or of a part.

    Args:
        config (str): The file.

    Raises:
        FileNotFoundError: If a file that it needs is not there.
        OSError: If one cannot be read.
        ValueError: If it is no config.
    """
    try:
        with named(Path(config)):
            return Config.fromfile(config)
    except (AssertionError, SyntaxError, ValueError, YAMLError) as error:
        said = str(error).rstrip('.')
        raise ValueError(
            f'The config {config}, or a `_base_` of it, is not valid: '
            f'{said}.') from error
    except UnboundLocalError as error:
        # mmengine looks for a temporary folder that could not be made
        if not isinstance(error.__context__, OSError):
            raise
        raise ValueError(
            f'The config {config} cannot be read, as no temporary folder can '
            f'be made ({error.__context__.strerror}); make room, or set '
            'TMPDIR to another one.') from error
    except FileNotFoundError as error:
        fix = 'check its `_base_`'
        if '.mim/model-index' in str(error.filename):
            fix += ' (a scope, vim_mm::, needs an install: pip install -e .)'
        raise FileNotFoundError(f'The config {config} needs a file that is '
                                f'not there ({error.filename or error}); '
                                f'{fix}.') from error


def type_name(cfg: dict) -> str:
    """Name of the class that a config names, or holds as lazy ones do."""
    return getattr(cfg['type'], '__name__', cfg['type']).split('.')[-1]


def class_of(cfg: dict, registry: Registry) -> Optional[type]:
    """The class itself, of the config's or the current scope."""
    if not isinstance(cfg['type'], str):
        return cfg['type']
    with registry.switch_scope_and_registry(cfg.get('_scope_')) as found:
        return found.get(cfg['type'])


def library_of(cfg: dict, default: Optional[str] = None) -> Optional[str]:
    """The library of a config's type: by its prefix, class or base.

    Args:
        cfg (dict): The config.
        default (str, optional): The scope that applies where it says nothing.
    """
    kind = cfg['type']
    if not isinstance(kind, str):
        return kind.__module__.partition('.')[0]
    scope, named, _ = kind.partition('.')
    return scope if named else cfg.get('_scope_', default)


def task_scopes(tasks: Mapping[str, dict],
                default: Optional[str] = None) -> Dict[str, Optional[str]]:
    """The library of each task of a multi-task model.

    Args:
        tasks (Mapping[str, dict]): Configs of the tasks' models.
        default (str, optional): See :func:`library_of`.

    Raises:
        ValueError: If they are not by task, or one is no config of a model.
    """
    check_by_task(tasks, 'model.tasks')
    for name, cfg in tasks.items():
        check_is_config(cfg, f'model.tasks.{name}')
        if 'type' not in cfg:
            raise ValueError(f'`model.tasks.{name}` has no `type`; name that '
                             "of its model, such as 'mmdet.RetinaNet'.")
    return {name: library_of(cfg, default) for name, cfg in tasks.items()}

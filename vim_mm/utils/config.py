# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os.path as osp
from typing import Union

from mmengine.config import Config
from yaml import YAMLError


def read_config(config: Union[str, Config]) -> Config:
    """A config of one's own: read from a file, or copied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no config.
    """
    if isinstance(config, Config):
        return config.copy()
    if not osp.isfile(config):
        raise FileNotFoundError(
            f'There is no config file {config}: check the path.')
    if not config.endswith(('.py', '.yml', '.yaml', '.json')):
        raise ValueError(f'{config} is no config file: these end in .py, '
                         '.yml, .yaml or .json.')
    try:
        cfg = Config.fromfile(config)
    except (SyntaxError, ValueError, YAMLError) as error:
        raise ValueError(
            f'The config {config}, or a `_base_` of it, is not valid: '
            f'{error}.') from error
    except FileNotFoundError as error:
        mend = 'check its `_base_`'
        if '.mim/model-index' in str(error.filename):
            mend += ' (a scope, vim_mm::, needs an install: pip install -e .)'
        raise FileNotFoundError(f'The config {config} needs a file that is '
                                f'not there ({error.filename or error}); '
                                f'{mend}.') from error
    if 'model' not in cfg:
        raise ValueError(f'The config {config} has no `model`; give one of a '
                         'whole run.')
    return cfg


def type_name(cfg: dict) -> str:
    """Name of the class that a config names, or holds as lazy ones do."""
    return getattr(cfg['type'], '__name__', cfg['type']).split('.')[-1]

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os.path as osp
from typing import Union

from mmengine.config import Config


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
    return Config.fromfile(config)

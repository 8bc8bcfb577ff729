# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope


def build_model(cfg: Config, **backbone: Any) -> BaseModel:
    """Build the model of a whole config, as a runner would.

    Args:
        cfg (Config): The config; it stays as it is.
        **backbone: Arguments of the backbone, in place of the config's own.

    Raises:
        ValueError: If the config has no model.
    """
    if not cfg.get('model'):
        raise ValueError('Its config has no `model`; give one of a whole '
                         'task.')
    model = deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    if backbone:
        model.backbone.update(backbone)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return MODELS.build(model)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Children of mmengine's registries under the scope ``vim_mm``.

``locations`` makes every class importable from a config by name alone, without
star imports: mmengine imports the listed packages the first time a type of this
scope is built.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

__all__ = ['HOOKS', 'MODELS', 'TRANSFORMS']

# hooks of the training run: zoo writing, head warm-up, gate start, gate log
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='vim_mm',
    locations=['vim_mm.engine.hooks'])
# backbones, adapters, fusions and necks
MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='vim_mm',
    locations=['vim_mm.models'])
# data transforms that the mm* libraries lack
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='vim_mm',
    locations=['vim_mm.datasets.transforms'])

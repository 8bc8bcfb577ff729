# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Children of mmengine's registries under the scope ``vim_mm``.

Every node of the root has a child here, so that a config whose default scope
is ``vim_mm`` finds mmengine's own types too. ``locations`` makes our classes
importable from a config by name alone, without star imports: mmengine imports
the location the first time a type of this scope is built.
"""

from mmengine.registry import Registry, root

__all__ = [
    'DATASETS', 'DATA_SAMPLERS', 'EVALUATOR', 'FUNCTIONS', 'HOOKS',
    'INFERENCERS', 'LOG_PROCESSORS', 'LOOPS', 'METRICS', 'MODELS',
    'MODEL_WRAPPERS', 'OPTIMIZERS', 'OPTIM_WRAPPERS',
    'OPTIM_WRAPPER_CONSTRUCTORS', 'PARAM_SCHEDULERS', 'RUNNERS',
    'RUNNER_CONSTRUCTORS', 'STRATEGIES', 'TASK_UTILS', 'TRANSFORMS',
    'VISBACKENDS', 'VISUALIZERS', 'WEIGHT_INITIALIZERS'
]


def _child(parent: Registry, *locations: str) -> Registry:
    return Registry(
        parent.name, parent=parent, scope='vim_mm', locations=list(locations))


# backbones, adapters, fusions and necks
MODELS = _child(root.MODELS, 'vim_mm.models')
# zoo writing, head warm-up, gate start, gate log, checkpoint guard
HOOKS = _child(root.HOOKS, 'vim_mm.engine.hooks')
INFERENCERS = _child(root.INFERENCERS, 'vim_mm.apis')

# training, validation and tests of several tasks
LOOPS = _child(root.LOOPS, 'vim_mm.engine.loops')
# parts of tensors that can be resumed, on CPUs too
STRATEGIES = _child(root.STRATEGIES, 'vim_mm.engine.strategies')

# nothing of ours yet; these lead on to mmengine's types
RUNNERS = _child(root.RUNNERS, 'vim_mm.engine')
RUNNER_CONSTRUCTORS = _child(root.RUNNER_CONSTRUCTORS, 'vim_mm.engine')
LOG_PROCESSORS = _child(root.LOG_PROCESSORS, 'vim_mm.engine')
OPTIMIZERS = _child(root.OPTIMIZERS, 'vim_mm.engine')
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, 'vim_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS,
                                    'vim_mm.engine')
PARAM_SCHEDULERS = _child(root.PARAM_SCHEDULERS, 'vim_mm.engine')
DATASETS = _child(root.DATASETS, 'vim_mm.datasets')
DATA_SAMPLERS = _child(root.DATA_SAMPLERS, 'vim_mm.datasets')
# those that run a network lie beside it
TRANSFORMS = _child(root.TRANSFORMS, 'vim_mm.datasets',
                    'vim_mm.models.generators')
FUNCTIONS = _child(root.FUNCTIONS, 'vim_mm.datasets')
MODEL_WRAPPERS = _child(root.MODEL_WRAPPERS, 'vim_mm.models')
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS, 'vim_mm.models')
TASK_UTILS = _child(root.TASK_UTILS, 'vim_mm.models')
METRICS = _child(root.METRICS, 'vim_mm.evaluation')
EVALUATOR = _child(root.EVALUATOR, 'vim_mm.evaluation')
VISUALIZERS = _child(root.VISUALIZERS, 'vim_mm.engine')
VISBACKENDS = _child(root.VISBACKENDS, 'vim_mm.engine')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What every run looks at before it works, from a tool or from Python."""

import logging
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import wraps
from typing import Callable, Iterator, Tuple, Union

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS, DefaultScope
from mmengine.runner import (EpochBasedTrainLoop, FlexibleRunner,
                             IterBasedTrainLoop, Runner, TestLoop, ValLoop)
from torch import nn

from vim_mm.utils.arguments import check_arguments
from vim_mm.utils.config import class_of, type_name
from vim_mm.utils.data import check_data
from vim_mm.utils.dist import prepare_cpu_dist
from vim_mm.utils.keys import check_keys
from vim_mm.utils.misspelt import no_type
from vim_mm.utils.quiet_logs import drop_frozen
from vim_mm.utils.settings import check_together
from .divided import check_whole_hooks
from .explained import explained, explained_method
from .loaders import check_loaders
from .resume import choose_checkpoint
from .stopping import stoppable

TRAINING = ('train_dataloader', 'val_dataloader')
TESTING = ('test_dataloader', )
_ORDINARY_LOOPS = ('EpochBasedTrainLoop', 'IterBasedTrainLoop', 'ValLoop',
                   'TestLoop')


def build_runner(cfg: Config,
                 parts: Tuple[str, ...]) -> Union[Runner, FlexibleRunner]:
    """Build a run's runner once its data has been found.

    Args:
        cfg (Config): Config of the run with its ``launcher``.
        parts (tuple[str]): The data loaders that it needs: TRAINING or
            TESTING.

    Raises:
        FileNotFoundError: If data is missing.
        ValueError: If a key is misspelt, or the launcher's environment
            variables are missing.
    """
    check_keys(cfg)
    check_together(cfg)
    check_data(cfg, parts)
    prepare_cpu_dist(cfg, cfg.launcher)
    if 'runner_type' not in cfg:
        return Runner.from_cfg(cfg)
    if class_of(dict(type=cfg.runner_type), RUNNERS) is None:
        raise no_type(RUNNERS, cfg.runner_type)
    if cfg.get('env_cfg') is None:  # which FlexibleRunner does not take
        cfg.env_cfg = {}
    return RUNNERS.build(cfg)


def guard_runner() -> None:
    """Let mmengine's runners look at data, device and checkpoints first.

    Loops and optimizers are built before any hook hears of a run, so a hook
    alone would come too late. Idempotent.
    """
    for runner in (Runner, FlexibleRunner):
        # the first that the constructor of each calls
        first = 'setup_env' if runner is Runner else 'register_hooks'
        _precede(runner, first, _check_keys)
        _precede(runner, 'register_hooks', _add_guard)
        _precede(runner, 'train', _before_training, _training)
        _precede(runner, 'val', _before_validation, explained)
        _precede(runner, 'test', _before_testing, explained)
        _precede(runner, 'load_or_resume', choose_checkpoint)
        check_loaders(runner)
        explained_method(runner, '__init__', 'The run cannot be built')


def _precede(cls: type,
             method: str,
             look: Callable,
             within: Callable = nullcontext) -> None:
    """Call ``look(runner)`` before a method of a class.

    Args:
        cls (type): The class.
        method (str): Name of its method.
        look (Callable): Is called with the instance.
        within (Callable): Gives a context for the method, likewise.
    """
    original = getattr(cls, method)
    if getattr(original, 'preceded_by', None) is look:
        return

    @wraps(original)
    def guarded(self, *args, **kwargs):
        look(self)
        with within(self):
            return original(self, *args, **kwargs)

    guarded.preceded_by = look
    setattr(cls, method, guarded)


def _check_keys(runner: Runner) -> None:
    check_keys(runner.cfg)


def _add_guard(runner: Runner) -> None:
    runner.logger.addFilter(drop_frozen)
    runner.register_hook(dict(type='vim_mm.GuardHook'))
    runner.register_hook(dict(type='vim_mm.FunctionHook'))
    runner.register_hook(dict(type='vim_mm.ExactHook'))
    runner.register_hook(dict(type='vim_mm.StopHook'))
    # they do nothing where there is no part of ours
    runner.register_hook(dict(type='vim_mm.FiniteLossHook'))
    runner.register_hook(dict(type='vim_mm.SummaryHook'))
    runner.register_hook(dict(type='vim_mm.FrozenTrunkHook'))
    runner.register_hook(dict(type='vim_mm.StudentHook'))


@contextmanager
def _training(runner: Runner) -> Iterator[None]:
    with explained(runner), stoppable(runner):
        yield


def _before_training(runner: Runner) -> None:
    # not above: importing models may be what has imported this file
    from vim_mm.models.channels import check_channels
    from .rates import check_rates
    from .strategies.fsdp_strategy import check_strategy
    check_strategy(getattr(runner, 'strategy', None))
    _check_loops(runner, 'train', 'val')
    check_whole_hooks(runner)
    for hook in runner.hooks:
        if hasattr(hook, 'check_steps'):
            hook.check_steps(runner._train_loop)
    _check_data(runner, TRAINING)
    model = _unwrap(runner.model)
    if isinstance(model, nn.Module):
        check_rates(runner.optim_wrapper, model)
        check_channels(model)
    else:  # a strategy has not built it yet
        _look_at_built(runner)
    keep_float32_on_cpu(runner.optim_wrapper)


def _look_at_built(runner: FlexibleRunner) -> None:
    """Look at a model where its strategy builds it, as yet whole and bare."""
    from vim_mm.models.channels import check_channels
    from .rates import check_rates
    original = runner.strategy.build_model
    optim_wrapper = deepcopy(runner.optim_wrapper)

    @wraps(original)
    def build_model(model: Union[nn.Module, dict]) -> nn.Module:
        built = original(model)
        check_rates(optim_wrapper, built)
        check_channels(built)
        return built

    runner.strategy.build_model = build_model


def _before_validation(runner: Runner) -> None:
    _check_loops(runner, 'val')
    _check_data(runner, TRAINING[1:])


def _before_testing(runner: Runner) -> None:
    _check_loops(runner, 'test')
    _check_data(runner, TESTING)


def _check_loops(runner: Runner, *stages: str) -> None:
    """Refuse loaders by task, and settings, that a loop does not know."""
    for stage in stages:
        loader = getattr(runner, f'_{stage}_dataloader')
        loop = getattr(runner, f'_{stage}_loop')
        if (isinstance(loader, dict) and 'dataset' not in loader
                and isinstance(loop, dict)
                and loop.get('type') in (None, *_ORDINARY_LOOPS)):
            raise ValueError(
                f'`{stage}_dataloader` has no `dataset`; give it one, or, if '
                f'it is by task, set `{stage}_cfg.type` to '
                f"'vim_mm.MultiTask{stage.capitalize()}Loop'.")
        if isinstance(loop, dict) and 'type' not in loop:
            # mmengine builds it by itself
            if stage == 'train' and 'by_epoch' not in loop:
                raise ValueError(
                    '`train_cfg` has neither `type` nor `by_epoch`; set '
                    '`train_cfg.by_epoch`, True with `max_epochs`, False with '
                    '`max_iters`.')
            kind = dict(val=ValLoop, test=TestLoop).get(stage)
            kind = kind or (EpochBasedTrainLoop if loop.get('by_epoch', True)
                            else IterBasedTrainLoop)
            check_arguments(kind, set(loop) - {'by_epoch'},
                            ('runner', 'dataloader', 'evaluator'))


def _unwrap(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _check_data(runner: Runner, parts: Tuple[str, ...]) -> None:
    cfg = {part: getattr(runner, f'_{part}') for part in parts}
    for part in set(parts) - {'train_dataloader'}:
        evaluator = part.replace('dataloader', 'evaluator')
        cfg[evaluator] = getattr(runner, f'_{evaluator}')
    cfg['model'] = _unwrap(runner.model)
    scope = DefaultScope.get_current_instance()
    check_data(dict(cfg, default_scope=scope and scope.scope_name), parts)


def keep_float32_on_cpu(wrapper: object) -> None:
    """The same commands run without a GPU, where nothing scales losses.

    Args:
        wrapper (dict): Config of the optimizer wrapper, changed in place. A
            wrapper that is built is left alone.
    """
    if not isinstance(wrapper, dict) or get_device() != 'cpu':
        return
    if type_name({'type': 'OptimWrapper', **wrapper}) != 'AmpOptimWrapper':
        return
    print_log(
        'Mixed precision needs a GPU, and there is none: this run computes '
        'in float32.',
        logger='current',
        level=logging.WARNING)
    wrapper['type'] = 'OptimWrapper'
    for key in ('loss_scale', 'dtype', 'use_fsdp'):
        wrapper.pop(key, None)


guard_runner()

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What needs whole tensors, in a run whose processes hold parts of them.

Outside of a pass a process sees its own piece of a tensor, flat or empty, and
what would be computed, set or saved of it is wrong.
"""

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

#: What to do instead of a hook, as its attribute ``needs_whole``.
ELSEWHERE = ('let a run without the `strategy` do it, and start from its '
             'checkpoint (`load_from`)')
LEAVE_OUT = 'leave it out'


def check_whole_hooks(runner: Runner) -> None:
    """Refuse hooks that need whole tensors where processes hold parts.

    Args:
        runner (Runner): The run, with all of its hooks.

    Raises:
        ValueError: If there is one.
    """
    # not above: importing strategies may be what has imported this file
    from mmengine._strategy import DeepSpeedStrategy, FSDPStrategy
    strategy = getattr(runner, 'strategy', None)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and isinstance(
                strategy, (DeepSpeedStrategy, FSDPStrategy)):
            raise ValueError(
                'EMAHook averages whole tensors, of which FSDP and DeepSpeed '
                'give a process a part only; leave the hook out, or the '
                '`strategy`.')
        instead = getattr(hook, 'needs_whole', None)
        if instead is not None:
            check_whole(runner, type(hook).__name__, instead)


def check_whole(runner: Runner, who: str, instead: str) -> None:
    """Refuse what reads or sets tensors where processes hold parts of them.

    Args:
        runner (Runner): The run.
        who (str): What does it, for messages.
        instead (str): What to do instead.

    Raises:
        ValueError: If a strategy divides them (FSDP, ZeRO 3).
    """
    strategy = getattr(runner, 'strategy', None)
    if getattr(strategy, 'divides', False):
        raise ValueError(
            f'{who} works with whole tensors, of which '
            f'{type(strategy).__name__} gives a process a part only; '
            f'{instead}, or leave the `strategy` out.')

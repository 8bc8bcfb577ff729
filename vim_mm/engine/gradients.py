# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What an optimizer is given, looked at before it steps."""

from typing import Callable, Iterable, List, Optional, Union

import torch
from mmengine.dist import all_reduce
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

#: Steps after which a look waits for the device, before it does so seldom.
_FIRST, _SELDOM = 50, 500


def wrappers(runner: Runner) -> List[BaseOptimWrapper]:
    """The optimizer wrappers of a run, once they are built."""
    wrapper = runner.optim_wrapper
    several = wrapper.values() if isinstance(wrapper, OptimWrapperDict) \
        else [wrapper]
    return [each for each in several if isinstance(each, BaseOptimWrapper)]


class Gradients:
    """Whether a gradient has come to one of some parameters.

    Weight decay and momentum move those that learn nothing, too. Once one
    has come, nothing is looked at any more.

    Args:
        runner (Runner): The run, ready to train.
        params (Iterable[nn.Parameter]): The parameters.
        counts (Callable, optional): Whether a step counts, as one of another
            task does not. Defaults to None: all do.
    """

    def __init__(self,
                 runner: Runner,
                 params: Iterable[nn.Parameter],
                 counts: Optional[Callable[[], bool]] = None) -> None:
        self._counts = counts
        self._params: List[nn.Parameter] = list(params)
        self._any: Union[bool, Tensor] = False
        self._steps = 0
        self._found = False
        self._handles: List[RemovableHandle] = [
            each.optimizer.register_step_pre_hook(self._look)
            for each in wrappers(runner)
            if hasattr(each.optimizer, 'register_step_pre_hook')
        ]
        self._watches = bool(self._handles)

    def _look(self, *_) -> None:
        if self._found or self._counts is not None and not self._counts():
            return  # an optimizer that steps lets no hook be removed
        grads = [p.grad for p in self._params if p.grad is not None]
        for grad in grads:
            self._any = grad.any() | self._any
        self._steps += 1
        waits = self._steps <= _FIRST or not self._steps % _SELDOM
        if grads and waits:
            self._found = bool(self._any)

    @property
    def steps(self) -> int:
        """How often an optimizer has stepped here, as far as is known."""
        return self._steps

    def came(self) -> bool:
        """Whether one has, in any process; True if none could be seen."""
        found = torch.tensor(int(not self._watches or bool(self._any)))
        all_reduce(found, op='max')
        while found and self._handles:
            self._handles.pop().remove()
        return bool(found)

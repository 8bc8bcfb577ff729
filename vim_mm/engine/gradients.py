# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What an optimizer is given, looked at before it steps."""

from typing import Any, Dict, Iterable, List, Optional, Union

import torch
from mmengine.dist import all_reduce
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
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
    """

    def __init__(self, runner: Runner, params: Iterable[nn.Parameter]) -> None:
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
        if self._found:  # an optimizer that steps lets no hook be removed
            return
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


class OutputGradients:
    """Whether gradients come back to what a backbone gives, by task.

    Those of its parameters may come of losses of its own, as of routing.

    Args:
        backbone (nn.Module): The backbone.

    Attributes:
        task (str, optional): That of the step that runs; None between steps,
            in which nothing is looked at.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.task: Optional[str] = None
        self._steps: Dict[str, int] = {}
        self._any: Dict[str, Union[bool, Tensor]] = {}
        self._handle = backbone.register_forward_hook(self._look)

    def _look(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        task = self.task
        tensors = [each for each in tree_leaves(output)
                   if isinstance(each, Tensor) and each.requires_grad]
        if task is None or not tensors:
            return
        self._steps[task] = self._steps.get(task, 0) + 1
        for each in tensors:
            each.register_hook(lambda grad: self._note(task, grad))

    def _note(self, task: str, grad: Optional[Tensor]) -> None:
        if grad is not None:  # of a level that nobody reads
            self._any[task] = grad.any() | self._any.get(task, False)

    def close(self) -> None:
        """Look at nothing any more."""
        self._handle.remove()

    def lacking(self, steps: int) -> List[str]:
        """Tasks of so many steps in which none came, in any process.

        Args:
            steps (int): Fewer of a task say nothing.
        """
        self.close()
        tasks = sorted(k for k, seen in self._steps.items() if seen >= steps)
        found = torch.tensor([int(self._any.get(k, False)) for k in tasks])
        if tasks:
            all_reduce(found, op='max')
        return [task for task, came in zip(tasks, found.tolist()) if not came]

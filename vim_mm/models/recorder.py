# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What parts of a model gave in a pass, kept with the graph."""

import threading
from contextlib import ExitStack, contextmanager
from typing import Dict, Hashable, Iterator, List, Mapping, NamedTuple

import torch
from mmengine.model import is_model_wrapper
from torch import nn

from .patterns import match_names


class Call(NamedTuple):
    """One call of a module.

    Attributes:
        output: What it gave.
        args (tuple): What it read by position; empty unless asked for.
        kwargs (dict): What it read by name; empty unless asked for.
    """
    output: object
    args: tuple = ()
    kwargs: Mapping[str, object] = {}


#: Calls of each module, in their order; none of modules that did not run.
Seen = Dict[Hashable, List[Call]]


class _Tap:
    """Forward hook that keeps the calls which its own thread makes.

    Blocks that run again while gradients are computed (activation
    checkpointing) are not recorded again, and a copy of a module that is
    made meanwhile (an EMA model) records nothing.
    """

    def __init__(self, calls: List[Call], inputs: bool) -> None:
        self.calls = calls
        self.inputs = inputs
        # a compiler traces one thread, and not the question which
        traced = torch.compiler.is_compiling()
        self.thread = None if traced else threading.get_ident()

    def __call__(self, _: nn.Module, args: tuple, *rest: object) -> None:
        if self.thread is not None and (
                self.thread != threading.get_ident()
                or torch._C._current_graph_task_id() >= 0):
            return
        # torch leaves the keyword arguments out while another thread is just
        # adding or removing its own tap
        *kwargs, output = rest
        read = (args, *kwargs) if self.inputs else ()
        self.calls.append(Call(output, *read))

    def __reduce__(self) -> tuple:
        return _Deaf, ()


class _Deaf:
    """What a copied module has in place of a tap."""

    def __call__(self, *_: object) -> None:
        """Keep nothing."""


@contextmanager
def tapping(modules: Mapping[Hashable, nn.Module],
            inputs: bool = False) -> Iterator[Seen]:
    """Within this context the calls of these modules are kept.

    Args:
        modules (Mapping[Hashable, nn.Module]): Modules by any key.
        inputs (bool): Whether to keep what they read too. Defaults to False.

    Yields:
        dict: Calls by key. Tensors are the very ones of the pass, with their
        graph; under reentrant checkpointing there is none. A graph that was
        compiled before does not see hooks: nothing of it is kept.
    """
    seen: Seen = {}
    with ExitStack() as stack:
        for key, module in modules.items():
            seen[key] = []
            handle = module.register_forward_hook(
                _Tap(seen[key], inputs), with_kwargs=True)
            stack.callback(handle.remove)
        yield seen


@contextmanager
def recording(model: nn.Module,
              pattern: str,
              inputs: bool = False) -> Iterator[Seen]:
    """Within this context the calls of named submodules are kept.

    ``with recording(model, r'layers\\.\\d+\\.ffn') as seen: model(x)`` leaves
    ``seen['layers.0.ffn'][0].output``.

    Args:
        model (nn.Module): The model, wrapped or not.
        pattern (str): See :func:`match_names`.
        inputs (bool): Whether to keep what they read too. Defaults to False.

    Yields:
        dict: Calls by name, see :func:`tapping`.

    Raises:
        ValueError: See :func:`match_names`.
    """
    model = model.module if is_model_wrapper(model) else model
    names = match_names(model, pattern, 'recorder', nested=True)
    modules = {name: model.get_submodule(name) for name in names}
    with tapping(modules, inputs) as seen:
        yield seen

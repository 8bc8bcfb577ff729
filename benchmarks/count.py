# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Counts instead of timings: operators and kernels of a pass.

They do not depend on the machine, so a test can hold them.
"""

import re
from typing import Any, Callable

import torch
import torch._dynamo
from torch import nn
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode


class OperatorCounter(TorchDispatchMode):
    """Counts dispatched operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def count_operators(run: Callable[[], Any]) -> int:
    """Dispatched operators of a run that are no views.

    The run goes once before it counts: what is kept from the first pass on is
    not made in every pass.
    """
    run()
    with OperatorCounter() as counter:
        run()
    return counter.count


@torch.no_grad()
def count_kernels(model: nn.Module, x: torch.Tensor, amp: bool = False) -> int:
    """Kernels that the compiled forward pass of a model starts.

    Those that Inductor writes, and calls of a library (``extern_kernels``,
    or an operator that it falls back to).

    Args:
        model (nn.Module): What to compile.
        x (Tensor): Its input.
        amp (bool): Under autocast to bfloat16. Defaults to False.

    Raises:
        RuntimeError: If the model is not one graph.
    """
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True), \
            torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
        compiled = torch.compile(model, fullgraph=True)
        _, codes = run_and_get_code(compiled, x)
    torch._dynamo.reset()
    if len(codes) != 1:
        raise RuntimeError(f'The forward pass compiles to {len(codes)} '
                           'pieces of code; it has to be one.')
    return kernels_in(codes[0])


def kernels_in(code: str) -> int:
    """Kernel calls in the code that Inductor wrote for one graph."""
    body = re.split(r'\n\s*def call\(', code)[-1]
    body = body.split('\ndef benchmark_compiled_module')[0]
    calls = r'''^\s*(?:\w+\ =\ )?(?:
        (?:cpp|triton)_\w+(?:\.run)?\(  # written by Inductor
        | extern_kernels\.\w+\( | torch\.ops\.\w+\.\w+(?:\.\w+)?\(
    )'''
    return len(re.findall(calls, body, re.MULTILINE | re.VERBOSE))

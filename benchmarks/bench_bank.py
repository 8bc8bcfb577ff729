# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: what K modules cost beside the bare trunk."""

from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Optional

import torch
import vit_models
from count import count_kernels, count_operators
from harness import (Benchmark, Goal, Result, Settings, peak_mb_on_gpu,
                     take_turns)
from torch import nn

ON_GPU = (1, 2, 4, 8, 16)


def forward(model: nn.Module,
            x: torch.Tensor,
            amp: bool = False) -> Callable[[], Any]:
    """A forward pass without gradients, perhaps under bf16 autocast."""

    @torch.no_grad()
    def run() -> Any:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            return model(x)

    return run


def bare(model: vit_models.ViMBackbone,
         run: Callable[[], Any]) -> Callable[[], Any]:
    """The same run of the trunk alone."""

    def run_trunk() -> Any:
        with model.only():
            return run()

    return run_trunk


def learning_steps(model: vit_models.ViMBackbone, x: torch.Tensor,
                   amp: bool) -> Dict[str, Callable[[], None]]:
    """Forward and backward of learning gates, and of the bare trunk.

    The trunk has nothing to learn, so it goes back to its input.
    """

    def step(images: torch.Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            out = model(images)[-1]
        out.float().square().mean().backward()
        model.zero_grad()
        images.grad = None

    to_input = x.clone().requires_grad_()
    return dict(
        ours=partial(step, x), trunk=bare(model, partial(step, to_input)))


def compiled(model: vit_models.ViMBackbone, trunk: nn.Module, x: torch.Tensor,
             amp: bool, mode: str) -> Dict[str, Callable[[], Any]]:
    """Forward passes of a backbone and of a trunk alone, both compiled."""
    torch._dynamo.reset()
    return {
        name: forward(torch.compile(part, fullgraph=True, mode=mode), x, amp)
        for name, part in dict(ours=model, trunk=trunk).items()
    }


# ------------------------------------------------------------------- counts


def operators(num: int, amp: bool, whole: bool,
              settings: Settings) -> Iterator[Result]:
    """Dispatched operators that are no views, counted on the CPU."""
    model = vit_models.bank(settings, num, 'cpu')
    run = forward(model, settings.images(1, 'cpu'), amp)
    count = count_operators(run)
    if not whole:
        count -= count_operators(bare(model, run))
        count /= len(model.slots)
    yield Result(count)


def kernels(num: int, amp: bool, settings: Settings) -> Iterator[Result]:
    """Kernels of the compiled forward pass, for the CPU.

    Three blocks tell what twelve do: all slots are alike.
    """
    model = vit_models.bank(settings, num, 'cpu', depth=3)
    x = settings.images(1, 'cpu')
    with model.only():
        trunk = count_kernels(model, x, amp)
    count = count_kernels(model, x, amp) - trunk
    yield Result(count / len(model.slots))


def counts() -> List[Benchmark]:
    """All rows that are counted."""
    found = []
    for amp, kind in ((False, 'fp32'), (True, 'bf16 autocast')):
        for num in (2, 16):
            name = f'operators a slot, {kind}, K={num}'
            found.append(
                Benchmark(name, [Goal(name, '(a count)', 12)],
                          partial(operators, num, amp, False)))
        name = f'compiled kernels a slot, {kind}, K=4'
        found.append(
            Benchmark(name, [Goal(name, '(a count)', 6)],
                      partial(kernels, 4, amp)))
    name = 'operators of a whole pass, bf16 autocast, K=16'
    found.append(
        Benchmark(name, [Goal(name, '(a count)', 420)],
                  partial(operators, 16, True, True)))
    return found


# ------------------------------------------------------------------ timings


def inference(num: int,
              batch: int,
              repeats: int,
              settings: Settings,
              device: str = 'cpu',
              amp: bool = False,
              mode: Optional[str] = None) -> Iterator[Result]:
    """A forward pass with ``num`` modules against one of the trunk.

    With ``mode`` both are compiled, the trunk as it stands alone.
    """
    model = vit_models.bank(settings, num, device)
    x = settings.images(settings.batch(batch), device)
    runs = dict(ours=forward(model, x, amp))
    runs['trunk'] = bare(model, runs['ours'])
    if mode is not None:
        runs = compiled(model, vit_models.trunk(settings, device), x, amp,
                        mode)
    times = take_turns(runs, settings.runs(repeats), device)
    yield times.against('ours', 'trunk', peak_mb_on_gpu(runs['ours'], device))


def learning(num: int, batch: int, repeats: int,
             settings: Settings) -> Iterator[Result]:
    """A step of the gates against one of the trunk to its input.

    Both go forward and backward through the trunk; nothing else learns.
    """
    device = settings.device
    model = vit_models.bank(settings, num, device, learn=True)
    x = settings.images(settings.batch(batch))
    runs = learning_steps(model, x, amp=True)
    times = take_turns(runs, settings.runs(repeats), device)
    yield times.against('ours', 'trunk', peak_mb_on_gpu(runs['ours'], device))


def timings() -> List[Benchmark]:
    """All rows that are timed."""
    found = []
    for batch, num, target in ((8, 12, 1.03), (8, 32, 1.08), (1, 12, 1.05)):
        name = f'inference, CPU fp32, batch {batch}, K={num}'
        found.append(
            Benchmark(name, [Goal(name, 'bare trunk', target)],
                      partial(inference, num, batch, 20 if batch > 1 else 60)))
    ways = (('eager', None, 1.3), ('compiled', 'reduce-overhead', 1.12))
    for how, mode, target in ways:
        for num in ON_GPU:
            name = f'inference, GPU bf16, batch 32, K={num}, {how}'
            run = partial(
                inference, num, 32, 50, device='cuda', amp=True, mode=mode)
            found.append(
                Benchmark(name, [Goal(name, 'bare trunk', target)], run, True))
    name = 'gates learn, GPU bf16, batch 32, K=16'
    goal = Goal(name, 'trunk forward + backward to its input', 2.5)
    found.append(Benchmark(name, [goal], partial(learning, 16, 32, 30), True))
    return found


BENCHMARKS = [*counts(), *timings()]

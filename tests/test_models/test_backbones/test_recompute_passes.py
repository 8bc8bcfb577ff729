# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What runs again in backward finds the pass that it belongs to."""

import threading
from copy import deepcopy
from typing import Callable, Dict, List

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from _recompute import (backbone_of, check, gradients, loss_of, one_pass,
                        pictures)
from _tiny import compiles
from vim_mm.models.backbones import ViMBackbone


def two_tasks(backbone: ViMBackbone, order: Callable) -> None:
    """Two passes of different tasks and sizes before any backward."""
    losses = []
    for task, size in (('x', (56, 56)), ('y', (28, 70))):
        backbone.select_task(task)
        losses.append(loss_of(backbone(pictures(*size))))
    with backbone.only('b'), torch.no_grad():
        backbone(pictures(42, 42))
    order(*losses)


@pytest.mark.parametrize('order', [
    lambda x, y: (x + y).backward(),
    lambda x, y: (x.backward(), y.backward()),
    lambda x, y: (y.backward(), x.backward()),
    lambda x, y: (x.backward(retain_graph=True), y.backward(), x.backward()),
], ids=['sum', 'first', 'last', 'again'])
def test_several_passes_before_backward(order: Callable) -> None:
    check(backbone_of(), lambda b: two_tasks(b, order))


def test_a_pass_that_reads_another() -> None:

    def chain(backbone: ViMBackbone) -> None:
        first = backbone(pictures())[-1]
        backbone.select_task('y')
        x = first[:, :3].repeat_interleave(14, -1).repeat_interleave(14, -2)
        loss_of(backbone(x)).backward()

    check(backbone_of(), chain)


def test_streams() -> None:
    backbone = backbone_of()
    backbone.fusion = None
    check(backbone, lambda b: sum(map(loss_of, b(pictures()))).backward())


def test_a_pass_of_mixed_tasks() -> None:

    def mixed(backbone: ViMBackbone) -> None:
        with backbone.for_tasks(['x', 'y']):
            outputs = backbone(pictures())
        loss_of(outputs).backward()

    check(backbone_of(), mixed)


def test_bfloat16_autocast() -> None:

    def amp(backbone: ViMBackbone) -> None:
        with torch.autocast('cpu', torch.bfloat16):
            outputs = backbone(pictures())
        loss_of(outputs).backward()

    check(backbone_of(), amp)


def test_hooks_of_data_parallelism_fire_once() -> None:

    def hooked(backbone: ViMBackbone) -> None:
        params = [p for p in backbone.parameters() if p.requires_grad]
        seen: List[int] = []
        handles = [
            param.register_post_accumulate_grad_hook(
                lambda p: seen.append(id(p))) for param in params
        ]
        one_pass(backbone)
        assert sorted(seen) == sorted(map(id, params))
        for handle in handles:
            handle.remove()

    check(backbone_of(), hooked)


def test_in_threads() -> None:
    """Each with a copy, forward and backward interleaved."""
    backbone = backbone_of(drop_rate=0.)
    backbone.grad_checkpointing()
    meet = threading.Barrier(2)
    copies = {task: deepcopy(backbone) for task in 'xy'}

    def work(task: str) -> None:
        copy = copies[task]
        copy.select_task(task)
        outputs = copy(pictures())
        meet.wait(60)
        loss_of(outputs).backward()

    threads = [threading.Thread(target=work, args=(t, )) for t in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backbone.grad_checkpointing(False)
    for task, copy in copies.items():
        backbone.zero_grad()
        backbone.select_task(task)
        one_pass(backbone)
        pairs = zip(copy.parameters(), backbone.parameters())
        assert all(
            torch.equal(mine.grad, own.grad) for mine, own in pairs
            if own.requires_grad)


@compiles
@pytest.mark.slow
def test_one_graph() -> None:
    backbone = backbone_of(drop_rate=0.)
    expected = gradients(backbone, one_pass)
    backbone.grad_checkpointing()
    torch._dynamo.reset()
    compiled = torch.compile(backbone, backend='aot_eager', fullgraph=True)
    got = gradients(backbone,
                    lambda _: loss_of(compiled(pictures())).backward())
    torch.testing.assert_close(got, expected)


def wrap(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda *args, **kwargs: checkpoint(
        forward, *args, use_reentrant=False, **kwargs)


PLACES: Dict[str, Callable] = dict(
    block=lambda b: wrap(b.trunk.layers[1]),
    blocks=lambda b: [wrap(layer) for layer in b.trunk.layers],
    attention=lambda b: [wrap(layer.attn) for layer in b.trunk.layers],
    trunk=lambda b: wrap(b.trunk),
    backbone=wrap,
    nested=lambda b: [wrap(b.trunk), wrap(b.trunk.layers[1])],
    both=lambda b: [b.grad_checkpointing(), wrap(b.trunk)])


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('fusion', ['EnsMoE', 'RoutedMoE'])
def test_checkpoints_that_are_not_reentrant(place: str, fusion: str) -> None:
    backbone = backbone_of(fusion=fusion)
    expected = gradients(
        backbone, lambda b: two_tasks(b, lambda x, y: (x + y).backward()))
    PLACES[place](backbone)
    got = gradients(
        backbone, lambda b: two_tasks(b, lambda x, y: (x + y).backward()))
    assert all(map(torch.equal, got, expected))

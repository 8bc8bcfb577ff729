# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Whatever changes a backbone changes what it runs from the next pass on.

Each event happens to a backbone that has run in several ways before and to one
that never ran; afterwards both must do the same.
"""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Callable, Iterator, List, Tuple

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor

from _events import EVENTS, backbone_of
from _tiny import fill
from vim_mm.models.backbones import ViMBackbone


def pictures() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, 56, 56)


def run_in_all_ways(backbone: ViMBackbone) -> List[Tensor]:
    """Outputs, and gradients, of passes of several kinds; ends in eval."""
    torch.manual_seed(1)
    results = []
    for training in (True, False):
        backbone.train(training)
        results += passes(backbone)
    return results


def passes(backbone: ViMBackbone) -> Iterator[Tensor]:
    x = pictures().to(next(backbone.parameters()).dtype)
    task = backbone.task
    for amp in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            with torch.no_grad():
                yield from backbone(x)
                with backbone.only(backbone.bank.names[0]):
                    yield from backbone(x)
            if not backbone.training:
                with torch.inference_mode():
                    yield from (level.clone() for level in backbone(x))
                if not backbone.fusion.merges:
                    with torch.no_grad(), backbone.for_tasks(['x', 'y']):
                        yield from backbone(x)
            learns = not backbone.training or task in backbone.learning
            if not learns:
                continue
            outputs = backbone(x)
        yield from (level.detach() for level in outputs)
        params = [p for p in backbone.parameters() if p.requires_grad]
        total = sum(level.float().square().sum() for level in outputs)
        if params and total.requires_grad:
            grads = torch.autograd.grad(total, params, allow_unused=True)
            yield from (g for g in grads if g is not None)


@pytest.mark.parametrize('name', EVENTS)
def test_an_event_changes_what_runs(name: str, tmp_path: Path) -> None:
    ran = backbone_of(tmp_path)
    fresh = deepcopy(ran).eval()
    run_in_all_ways(ran)
    for backbone in (ran, fresh):
        EVENTS[name](backbone, tmp_path)
    results = []
    for backbone in (ran, fresh):
        torch.manual_seed(1)
        # at once, without the call of train() or eval() that runs begin with
        results.append([*passes(backbone), *run_in_all_ways(backbone)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def _pickled(backbone: ViMBackbone) -> ViMBackbone:
    return pickle.loads(pickle.dumps(backbone))


@pytest.mark.parametrize('duplicate', [deepcopy, _pickled])
def test_a_copy_runs_its_own(duplicate: Callable, tmp_path: Path) -> None:
    ran = backbone_of(tmp_path)
    run_in_all_ways(ran)
    with ran.only('a'):
        copy = duplicate(ran)
    expected = run_in_all_ways(ran)
    fill(ran.bank, seed=1)
    fill(ran.fusion, seed=1)
    got: List[Tensor] = run_in_all_ways(copy)
    assert len(got) == len(expected)
    assert all(map(torch.equal, got, expected))


def test_averages_swapped_before_validation(tmp_path: Path) -> None:
    backbone = backbone_of(tmp_path).requires_grad_(True)
    averages = ExponentialMovingAverage(backbone, 0.5)
    run_in_all_ways(backbone)
    fill(backbone.bank, seed=2)
    averages.update_parameters(backbone)
    averages.update_parameters(backbone)

    def swap() -> Tuple[Tensor, ...]:  # as mmengine's EMAHook
        pairs = zip(averages.module.parameters(), backbone.parameters())
        for average, own in pairs:
            value = average.data.clone()
            average.data.copy_(own.data)
            own.data.copy_(value)
        backbone.eval()
        with torch.no_grad():
            return backbone(pictures())

    for _ in range(2):
        backbone.train()
        with torch.no_grad():
            backbone(pictures())
        got = swap()
        fresh = deepcopy(backbone).eval()
        with torch.no_grad():
            assert all(map(torch.equal, got, fresh(pictures())))


def test_other_parameters_for_one_call(tmp_path: Path) -> None:
    backbone = backbone_of(tmp_path).eval()
    with torch.no_grad():
        before = backbone(pictures())
        own = {
            name: param * 1.5
            for name, param in backbone.bank.named_parameters(prefix='bank')
        }
        got = torch.func.functional_call(backbone, own, (pictures(), ))
        after = backbone(pictures())
        for name, value in own.items():
            backbone.get_parameter(name).copy_(value)
        expected = deepcopy(backbone)(pictures())
    assert all(map(torch.equal, got, expected))
    assert all(map(torch.equal, before, after))
    assert not torch.equal(before[-1], got[-1])

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How many operators a slot costs: what was saved cannot creep back."""

from pathlib import Path
from typing import Any, Dict

import pytest
import torch
from torch import Tensor, nn

from _tiny import build_backbone, compiles, fill, vit
from vim_mm.models.backbones import ViMBackbone

BENCHMARKS = Path(__file__).resolve().parents[3] / 'benchmarks'
#: per slot: fp32, bfloat16 under autocast
KINDS: Dict[str, tuple] = dict(
    ConvPass=(dict(type='ConvPass', hidden_dims=8), 12, 12),
    BottleneckAdapter=(dict(type='BottleneckAdapter', hidden_dims=8), 4, 5),
    # of them two views that torch does not call views
    LoRA=(dict(type='LoRA', rank=8), 5, 6))


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import count
    return count


def backbone_of(number: int, adapter: dict, layers: int = 3) -> ViMBackbone:
    """Frozen modules, gates that can learn, in eval mode."""
    torch.manual_seed(0)
    arch = dict(
        embed_dims=16, num_layers=layers, num_heads=2,
        feedforward_channels=32)
    backbone = build_backbone(
        vit(arch=arch, out_indices=[layers - 1]), adapter=adapter,
        new_module='m0')
    dims = backbone.bank.dims_of('m0')
    for index in range(1, number):
        backbone.bank.add(f'm{index}', backbone.bank.adapter_cfg('m0'), dims)
    fill(backbone.bank, 0.3)
    backbone.requires_grad_(False)
    backbone.set_fusion(dict(type='EnsMoE', tasks=['x', 'y']))
    fill(backbone.fusion, 1.)
    backbone.eval()
    return backbone


def pictures() -> Tensor:
    return torch.zeros(2, 3, 56, 56)


def operators(count: Any, model: nn.Module, amp: bool) -> int:
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=amp):
        return count.count_operators(lambda: model(pictures()))


def a_slot(count: Any, backbone: ViMBackbone, amp: bool) -> float:
    added = operators(count, backbone, amp) - operators(
        count, backbone.trunk, amp)
    return added / len(backbone.bank.slots_of('m0'))


@pytest.mark.parametrize('amp', [False, True], ids=['fp32', 'bf16'])
@pytest.mark.parametrize('number', [2, 4, 16])
@pytest.mark.parametrize('kind', KINDS)
def test_operators_a_slot(count: Any, kind: str, number: int,
                          amp: bool) -> None:
    adapter, *most = KINDS[kind]
    got = a_slot(count, backbone_of(number, adapter), amp)
    assert got <= most[amp]


def test_a_whole_pass(count: Any) -> None:
    backbone = backbone_of(16, KINDS['ConvPass'][0], layers=12)
    assert operators(count, backbone, amp=True) <= 420


@pytest.mark.parametrize('amp', [False, True], ids=['fp32', 'bf16'])
def test_gates_that_learn_cost_little_more(count: Any, amp: bool) -> None:
    """Those of all slots are folded in together, with autograd."""
    backbone = backbone_of(16, KINDS['ConvPass'][0], layers=12)
    slots = len(backbone.slots)

    def run() -> None:
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            backbone(pictures())

    assert backbone.fusion.logits['x'].requires_grad
    folded = operators(count, backbone, amp)
    assert count.count_operators(run) <= folded + 2 * slots


def test_a_plan_outlives_steps_of_what_it_does_not_hold(count: Any) -> None:
    backbone = backbone_of(4, KINDS['ConvPass'][0])
    plans = []
    for _ in range(3):
        backbone(pictures())
        plans.append(dict(backbone._plans))
        with torch.no_grad():
            backbone.fusion.logits['x'].add_(1)
    assert plans[0] == plans[1] == plans[2]


def test_weights_of_zero_cost_nothing(count: Any) -> None:
    backbone = backbone_of(4, KINDS['ConvPass'][0])
    backbone.set_fusion(dict(type='FixedFusion', weights=dict(m1=0.)))
    assert operators(count, backbone, False) == operators(
        count, backbone.trunk, False)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize('amp', [False, True], ids=['fp32', 'bf16'])
def test_kernels_a_slot_compiled(count: Any, amp: bool) -> None:
    backbone = backbone_of(4, KINDS['ConvPass'][0], layers=1)
    backbone.learn_tasks([])
    added = count.count_kernels(backbone, pictures(),
                                amp) - count.count_kernels(
                                    backbone.trunk, pictures(), amp)
    assert added <= 6 * len(backbone.slots)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Blocks that run again in backward give the gradients of those that do not.
"""

from copy import deepcopy
from typing import Dict, List

import pytest
import torch
from torch import Tensor, nn

from _recompute import (ALL, backbone_of, check, count_calls, gradients,
                        loss_of, one_pass, pictures, side_of)
from _tiny import build_backbone, fill, vit
from vim_mm.models.backbones import ViMBackbone
from vim_mm.models.recompute import Recompute, blocks_of


@pytest.mark.parametrize('kind', ALL)
@pytest.mark.parametrize('fusion', ['EnsMoE', 'RoutedMoE', 'ParameterMerge'])
def test_trunks(kind: str, fusion: str) -> None:
    side = side_of(ALL[kind])
    check(
        backbone_of(ALL[kind], fusion),
        lambda b: loss_of(b(pictures(side, side))).backward())


@pytest.mark.parametrize('kind', ['vit', 'swin', 'convnext'])
def test_the_input_gets_its_gradient(kind: str) -> None:
    side = side_of(ALL[kind])
    backbone = backbone_of(ALL[kind])
    grads = []
    for enable in (False, True):
        backbone.grad_checkpointing(enable)
        x = pictures(side, side).requires_grad_()
        torch.manual_seed(0)
        loss_of(backbone(x)).backward()
        grads.append(x.grad)
    assert torch.equal(*grads) and grads[0].any()


def test_linear_slots() -> None:
    backbone = build_backbone(
        adapter=dict(type='LoRA', rank=2), new_module='n')
    fill(backbone.bank, 0.3)
    check(backbone, one_pass)


def test_blocks_behind_the_slots_run_again_too() -> None:
    backbone = build_backbone(slots=r'layers\.0\.attn', new_module='n')
    names = blocks_of(backbone.trunk, backbone.slots)
    assert names == ['layers.0', 'layers.1', 'layers.2']
    fill(backbone.bank, 0.3)
    check(backbone, one_pass)


def test_only_where_something_learns() -> None:
    backbone = backbone_of()
    backbone.grad_checkpointing()
    calls = count_calls(backbone)
    with torch.no_grad():
        backbone(pictures())
    assert set(calls.values()) == {1}
    backbone.grad_checkpointing(False)
    one_pass(backbone)
    assert set(calls.values()) == {2}


def test_a_trunk_without_blocks_is_refused() -> None:
    backbone = build_backbone(
        adapter=dict(type='PluginNeck', hidden_dims=4), new_module='n')
    with pytest.raises(ValueError, match='no repeated blocks around'):
        backbone.grad_checkpointing()


def test_it_keeps_less() -> None:
    saved = []
    for enable in (False, True):
        backbone = backbone_of(vit(arch=dict(
            embed_dims=32, num_layers=6, num_heads=2,
            feedforward_channels=64), out_indices=[5]))
        backbone.grad_checkpointing(enable)
        sizes: Dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                sizes[tensor.untyped_storage().data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            outputs = backbone(pictures(112, 112))
        saved.append(sum(sizes.values()))
        loss_of(outputs).backward()
    assert saved[1] < 0.3 * saved[0]


@pytest.mark.parametrize('kind', ['swin', 'convnext', 'resnet'])
def test_with_cp_is_done_our_way(kind: str,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    said: List[str] = []
    monkeypatch.setattr('vim_mm.models.backbones.slotted_trunk.print_log',
                        lambda text, **_: said.append(text))
    backbone = backbone_of(dict(ALL[kind], with_cp=True))
    assert len(said) == 1 and 'grad_checkpointing' in said[0]
    plain = deepcopy(backbone)
    plain.grad_checkpointing(False)
    calls = count_calls(backbone)

    def run(backbone: ViMBackbone) -> None:
        loss_of(backbone(pictures(64, 64))).backward()

    got, expected = gradients(backbone, run), gradients(plain, run)
    assert all(map(torch.equal, got, expected))
    assert max(calls.values()) == 2


def test_a_copy_runs_its_own_blocks() -> None:
    backbone = backbone_of()
    backbone.grad_checkpointing()
    copy = deepcopy(backbone)
    before = gradients(copy, one_pass)
    fill(backbone.bank, seed=9)
    fill(backbone.trunk, seed=9)
    assert all(map(torch.equal, gradients(copy, one_pass), before))
    blocks = [m for m in copy.trunk.modules() if 'forward' in vars(m)]
    assert all(vars(m)['forward'].block is m for m in blocks
               if isinstance(vars(m)['forward'], Recompute))

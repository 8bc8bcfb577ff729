# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What only a GPU can show; run with ``pytest -m gpu``."""

import pytest
import torch
from torch import Tensor

from _tiny import (Pictures, add_modules, build_backbone, build_model, same,
                   snapshot, vit)
from vim_mm.models.adapters import BaseAdapter, ConvPass

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason='needs a CUDA device')
]


def fused() -> torch.nn.Module:
    backbone = build_backbone()
    add_modules(backbone, 'a', 'b', 'c')
    backbone.set_fusion(dict(type='EnsMoE'))
    return backbone


def pictures() -> Tensor:
    return torch.randn(
        2, 3, 56, 84, generator=torch.Generator().manual_seed(0))


def relative(first: Tensor, second: Tensor) -> float:
    return float((first.cpu() - second.cpu()).norm() / second.cpu().norm())


def test_gpu_equals_cpu() -> None:
    backbone = fused()
    on_cpu = backbone(pictures())[-1]
    on_gpu = backbone.cuda()(pictures().cuda())[-1]
    assert relative(on_gpu.float(), on_cpu) < 2e-3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_stays_near_fp32(dtype: torch.dtype) -> None:
    backbone = fused().cuda()
    x = pictures().cuda()
    full = backbone(x)[-1]
    with torch.autocast('cuda', dtype):
        half = backbone(x)[-1]
    assert 0 < relative(half.float(), full) < 2e-2


def test_loop_wide_and_packed_agree_on_gpu(
        monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = fused().cuda()
    x = pictures().cuda()
    packed = backbone(x)[-1]
    backbone.bank.requires_grad_(True)  # what learns is not packed
    wide = backbone(x)[-1]
    monkeypatch.setattr(ConvPass, 'wide', BaseAdapter.__dict__['wide'])
    loop = backbone(x)[-1]
    assert relative(packed, loop) < 2e-3 and relative(wide, loop) < 2e-3


@pytest.mark.parametrize('mode', ['default', 'reduce-overhead'])
def test_compiled_equals_eager_on_gpu(mode: str) -> None:
    backbone = fused().cuda().eval().requires_grad_(False)
    compiled = torch.compile(backbone, fullgraph=True, mode=mode)
    x = pictures().cuda()
    with torch.no_grad():
        expected = backbone(x)[-1]
        for _ in range(3):  # graphs are captured, then played
            assert relative(compiled(x)[-1], expected) < 2e-3


@pytest.mark.parametrize('amp', [False, True])
def test_blocks_that_run_again_give_the_same_gradients(amp: bool) -> None:
    grads = []
    for again in (False, True):
        backbone = fused().cuda()
        backbone.grad_checkpointing(again)
        with torch.autocast('cuda', torch.bfloat16, enabled=amp):
            loss = backbone(pictures().cuda())[-1].float().square().mean()
        grads.append(torch.autograd.grad(
            loss, backbone.fusion.logits['default'])[0])
    assert relative(*grads) < 1e-2


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('kind', ['cls', 'det', 'seg'])
def test_a_step_learns_the_module_alone(kind: str, amp: bool) -> None:
    trunk = vit(out_indices=(0, 1, 2))
    model = build_model(kind, dict(trunk=trunk, new_module='new')).cuda()
    model.train()
    before = snapshot(model.backbone.trunk)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2)
    with torch.autocast('cuda', torch.bfloat16, enabled=amp):
        data = model.data_preprocessor(Pictures(kind).batch(), True)
        losses = model.loss(data['inputs'], data['data_samples'])
    model.parse_losses(losses)[0].backward()
    optimizer.step()
    assert same(before, snapshot(model.backbone.trunk))
    up = [p for n, p in model.backbone.bank.named_parameters() if 'up' in n]
    assert any(p.abs().sum() > 0 for p in up)

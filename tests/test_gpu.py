# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What only a GPU can show; run with ``pytest -m gpu``."""

from typing import List

import pytest
import torch
from torch import Tensor

from _tiny import (Pictures, add_modules, build_backbone, build_model, same,
                   snapshot, vit)
from vim_mm.models.adapters import BaseAdapter, ConvPass
from vim_mm.models.moe import MoEMlp

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


# ------------------------------------------------------------------- experts


def experts(dispatch: str, dtype: torch.dtype) -> MoEMlp:
    torch.manual_seed(0)
    moe = MoEMlp(64, 32, 8, 2, ['a', 'b'], dispatch=dispatch)
    for param in moe.parameters():
        torch.nn.init.normal_(param, std=.2)
    return moe.cuda().to(dtype)


def step_of_experts(moe: MoEMlp, x: Tensor) -> List[Tensor]:
    """The output, and gradients of the input and what runs."""
    x = x.detach().requires_grad_()
    y = moe(x)
    return [y, *torch.autograd.grad(y, [x, *moe.experts.parameters()], x)]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_ways_of_dispatch_agree_on_gpu(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, 64, device='cuda', dtype=dtype)
    loop, grouped, dense = (
        step_of_experts(experts(way, dtype), x)
        for way in ('loop', 'grouped', 'dense'))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
    for first, second, third in zip(loop, grouped, dense):
        assert relative(second.float(), first.float()) < tolerance
        assert relative(third.float(), first.float()) < tolerance


def test_the_loop_over_experts_equals_that_on_cpu() -> None:
    x = torch.randn(3, 50, 64)
    moe = experts('loop', torch.float32)
    on_gpu = step_of_experts(moe, x.cuda())
    for first, second in zip(on_gpu, step_of_experts(moe.cpu(), x)):
        assert relative(first, second) < 2e-3


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 9,
    reason='needs compute capability 9.0')
@pytest.mark.parametrize('compiled', [False, True])
def test_grouped_experts_do_not_wait_for_the_gpu(compiled: bool) -> None:
    moe = experts('auto', torch.bfloat16)
    x = torch.randn(3, 50, 64, device='cuda', dtype=torch.bfloat16)
    run = torch.compile(moe, fullgraph=True) if compiled else moe
    run(x.requires_grad_()).backward(x.detach())
    torch.cuda.set_sync_debug_mode('error')
    try:
        run(x).backward(x.detach())
    finally:
        torch.cuda.set_sync_debug_mode('default')

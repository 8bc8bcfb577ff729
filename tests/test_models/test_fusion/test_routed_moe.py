# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Gates that depend on the picture, against one picture at a time."""

from copy import deepcopy
from typing import List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _tiny import SIZE, add_modules, build_backbone, fill, occupy
from vim_mm.models.fusion import RoutedMoE
from vim_mm.models.necks import ViMFusionNeck

NAMES = ['a', 'b', 'c']
SCALES = torch.tensor([1., 3, 9]).view(3, 1, 1, 1)


def randomise(fusion: RoutedMoE, std: float = 4.) -> None:
    generator = torch.Generator().manual_seed(0)
    for param in fusion.parameters():
        param.data.normal_(0, std, generator=generator)


def slow_row(fusion: RoutedMoE, dims: List[int], slot: int, tokens: Tensor,
             task: str) -> List[float]:
    """The weights of one picture, (L, C) tokens, number by number."""
    mean = tokens.mean(0)
    mean = (mean - mean.mean()) / (mean.var(correction=0) + 1e-5).sqrt()
    start, logits = sum(dims[:slot]), []
    for column in range(fusion.logits[task].shape[1]):
        weight = fusion.router[task][column, start:start + dims[slot]]
        logits.append(
            float(fusion.logits[task][slot, column].detach()) +
            float((weight.detach() * mean).mean()))
    kept = sorted(logits)[-(fusion.top_k or len(logits)):]
    total = sum(torch.tensor(value).exp() for value in kept)
    num = len(fusion.task_modules[task])
    return [
        float(torch.tensor(value).exp() / total) if value in kept else 0.
        for value in logits[:num]
    ]


@pytest.mark.parametrize('top_k', [None, 1, 2])
@pytest.mark.parametrize('zero_module', [False, True])
def test_rows_of_single_pictures(top_k: int, zero_module: bool) -> None:
    dims = [6, 4, 5]
    fusion = RoutedMoE(
        occupy(NAMES, *dims),
        tasks=('x', 'y'),
        top_k=top_k,
        zero_module=zero_module)
    randomise(fusion)
    for task in ('x', 'y'):
        fusion.select(task)
        for slot, width in enumerate(dims):
            x = torch.randn(4, 7, width)
            rows = fusion.rows(task)(slot, x)
            expected = [slow_row(fusion, dims, slot, p, task) for p in x]
            torch.testing.assert_close(rows, torch.tensor(expected))


def test_a_fresh_router_is_the_ensemble_of_the_task() -> None:
    backbone = build_backbone()
    add_modules(backbone, *NAMES)
    x, num = torch.randn(2, 3, SIZE, 70), len(backbone.slots)
    outputs = []
    for kind in ('EnsMoE', 'RoutedMoE'):
        backbone.set_fusion(dict(type=kind))
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(num, 3, generator=generator)
        fusion = backbone.fusion
        fusion.set_logits('default', logits)
        outputs.append(backbone(x))
    assert isinstance(fusion, RoutedMoE)
    gates = [fusion.gates('default'),
             fusion.rows('default')(1, x[:, :, :32, 0])]
    assert torch.equal(gates[1], gates[0][1].expand(2, -1))
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_a_batch_in_the_trunk_is_its_pictures_one_by_one() -> None:
    backbone = build_backbone()
    add_modules(backbone, *NAMES)
    backbone.set_fusion(dict(type='RoutedMoE'))
    randomise(backbone.fusion)
    x = torch.randn(3, 3, SIZE, SIZE) * SCALES
    batch = backbone(x)
    single = [backbone(picture[None]) for picture in x]
    for level, output in enumerate(batch):
        expected = torch.cat([s[level] for s in single])
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-3)
    # the pictures do get different weights
    assert float(spread(backbone, x)) > 0.05


def spread(backbone: nn.Module, x: Tensor) -> Tensor:
    """Largest deviation of a weight over the pictures, in any slot."""
    rows, row = [], backbone.fusion.rows('default')
    backbone.fusion.rows = lambda task: lambda *args: rows.append(
        row(*args)) or rows[-1]
    backbone(x)
    del backbone.fusion.rows
    assert len(rows) == len(backbone.slots)
    return max(row.std(0).max() for row in rows)


def test_the_loop_over_pictures_and_streams_in_a_neck() -> None:
    dims = [4, 6]
    neck = ViMFusionNeck(
        dims, scales=[1, 1], modules=NAMES, fusion=dict(type='RoutedMoE'))
    randomise(neck.fusion)
    streams = [[torch.randn(2, c, 3, 5) for c in dims] for _ in NAMES]
    outputs = neck(streams)
    for level in range(2):
        mean = sum(s[level] for s in streams) / 3
        for picture in range(2):
            tokens = mean[picture].flatten(1).t()
            row = slow_row(neck.fusion, dims, level, tokens, 'default')
            expected = sum(
                w * s[level][picture] for w, s in zip(row, streams))
            torch.testing.assert_close(
                outputs[level][picture], expected, rtol=1e-4, atol=1e-5)


def test_neck_and_trunk_give_the_same_delta() -> None:
    """A slot whose output is the output: weighing inside is outside."""
    backbone = build_backbone(slots=r'layers\.2\.ffn')
    add_modules(backbone, *NAMES)
    x = torch.randn(2, 3, SIZE, SIZE)
    maps = [stream[-1] for stream in backbone(x)]
    gates = torch.tensor([[.2, .5, .3], [.7, .1, .2]])
    backbone.set_fusion(dict(type='EnsMoE'))
    neck = ViMFusionNeck([32], scales=[1], modules=NAMES)
    for fusion in (backbone.fusion, neck.fusion):
        fusion.per_picture, fusion.rows = True, lambda _: lambda *_: gates
    torch.testing.assert_close(
        backbone(x)[-1], neck([[m] for m in maps])[0], rtol=1e-4, atol=1e-4)


def test_all_learns_even_beside_slots_that_nobody_reads() -> None:
    """No parameter without gradient: data parallelism would wait for it."""
    backbone = build_backbone(dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=32, num_layers=3, num_heads=2,
                  feedforward_channels=64),
        img_size=SIZE, patch_size=14, out_type='featmap', final_norm=False,
        out_indices=[1]))
    add_modules(backbone, *NAMES)
    backbone.set_fusion(dict(type='RoutedMoE', tasks=('x', 'y')))
    backbone.select_task('y')
    backbone.learn_tasks()
    backbone(torch.randn(2, 3, SIZE, SIZE))[0].square().sum().backward()
    grads = {n: p.grad for n, p in backbone.named_parameters()
             if p.requires_grad}
    assert sorted(grads) == ['fusion.logits.y', 'fusion.router.y']
    assert all(grad.abs().sum() > 0 for grad in grads.values())
    # of slots behind the only output there is nothing to learn
    assert (grads['fusion.router.y'][:, 4 * 32:] == 0).all()


def test_one_step_moves_logits_alike_through_both_paths() -> None:
    x = torch.randn(1, 5, 64)
    target = F.layer_norm(x.mean(1), (64, )).sign()[0]
    fusion = RoutedMoE(occupy('ab', 64))
    with torch.no_grad():  # one step of sign descent, as Adam's first
        fusion.router['default'][0] += 0.1 * target
    row = fusion.rows('default')(0, x)[0]
    moved = float((row[0] / row[1]).log())
    assert 0.06 < moved <= 0.1 + 1e-6


def test_a_copy_routes_by_its_own_weights() -> None:
    fusion = RoutedMoE(occupy(NAMES, 4))
    copied, x = deepcopy(fusion), torch.randn(2, 3, 4)
    randomise(copied)
    assert torch.equal(fusion.rows('default')(0, x), torch.full((2, 3), 1 / 3))
    assert not torch.equal(
        copied.rows('default')(0, x), torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize('kind', [
    dict(type='LoRA', rank=2),
    dict(type='SideLadder', hidden_dims=3),
], ids=lambda kind: kind['type'])
def test_other_kinds_of_module_are_routed_too(kind: dict) -> None:
    """Whose slots differ in width, or are the outputs themselves."""
    torch.manual_seed(0)  # how much pictures differ depends on the trunk
    backbone = build_backbone(
        new_module='a', adapter=kind, fusion=dict(
            type='RoutedMoE', zero_module=True))
    fill(backbone.bank.members['a'])
    widths = [spec.in_dims for spec in backbone.slots.values()]
    router = backbone.fusion.router['default']
    assert router.shape == (2, sum(widths))
    randomise(backbone.fusion)
    x = torch.randn(3, 3, SIZE, SIZE) * SCALES
    batch, single = backbone(x), [backbone(picture[None]) for picture in x]
    for level, output in enumerate(batch):
        expected = torch.cat([s[level] for s in single])
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-3)
    assert float(spread(backbone, x)) > 0.02

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: a layer of experts beside a dense MLP and other ways of dispatch.

    python benchmarks/bench_moe.py  # 'auto': which way is faster, how much
    python benchmarks/bench_moe.py --floor  # what products alone take

A step is a forward and a backward pass of 4,096 tokens. An expert is as wide
as a token, k = 4 of them run, so that the dense MLP of ratio 4 has as many
multiply-adds; the router comes on top. In fp32 on a CPU, in bf16 on a GPU.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import warnings
from functools import partial
from typing import Callable, Dict, Iterator, List

import bench_training
import moe_ways
import torch
from count import count_operators
from harness import (Benchmark, Goal, Result, Settings, peak_mb_on_gpu,
                     take_turns)
from mmengine.registry import MODELS
from torch import nn

from vim_mm.models.moe import MoEMlp, segment_mm
from vim_mm.models.moe.segments import _segment_outer

TOKENS, K, BATCH = 4096, 4, 32
#: what a step may cost beside the dense MLP's, by the number of experts
TARGETS = {16: 1.25, 64: 1.6}
Step = Callable[[], None]


def place(settings: Settings) -> dict:
    """Where tensors are, and in which precision."""
    cuda = settings.device.startswith('cuda')
    return dict(
        device=settings.device,
        dtype=torch.bfloat16 if cuda else torch.float32)


def training_step(layer: nn.Module,
                  dims: int,
                  settings: Settings,
                  tokens: int = TOKENS) -> Step:
    """A forward and a backward pass."""
    where = place(settings)
    layer.to(**where)
    x = torch.randn(1, tokens, dims, **where).requires_grad_()
    grad = torch.randn_like(x)

    def step() -> None:
        layer(x).backward(grad)
        layer.zero_grad()
        x.grad = None

    return step


def dense(dims: int) -> nn.Module:
    """An MLP with as many active multiply-adds."""
    return nn.Sequential(
        nn.Linear(dims, K * dims), nn.GELU(), nn.Linear(K * dims, dims))


def experts(dims: int, num: int, **kwargs) -> MoEMlp:
    torch.manual_seed(0)
    return MoEMlp(dims, dims, num, K, **kwargs)


# --------------------------------------------------------------------- rows


def beside_others(dims: int, device: str,
                  settings: Settings) -> Iterator[Result]:
    """Ours against the dense MLP and other ways, by the number of experts."""
    settings = Settings(device, settings.quick)
    dims, tokens = (16, 64) if settings.quick else (dims, TOKENS)
    for num in TARGETS:
        ours = experts(dims, num)
        layers = dict(ours=ours, dense=dense(dims))
        layers.update({way: moe_ways.like(ours, way) for way in moe_ways.WAYS})
        steps = {
            name: training_step(layer, dims, settings, tokens)
            for name, layer in layers.items()
        }
        times = take_turns(steps, settings.runs(9), settings.device)
        peak = peak_mb_on_gpu(steps['ours'], settings.device)
        for other in ('dense', *moe_ways.WAYS):
            yield times.against('ours', other, peak)


def goals(name: str) -> List[Goal]:
    """A row for each number of experts and opponent."""
    return [
        Goal(f'{name}, E={num}', other, target)
        for num, beside_dense in TARGETS.items()
        for other, target in (('dense MLP', beside_dense),
                              *dict.fromkeys(moe_ways.WAYS, 1.).items())
    ]


def whole_backbone(settings: Settings) -> Iterator[Result]:
    """A training step of MoE-DaViT-T with three tasks, and of its twin.

    AdamW is fused for both: it has ten times as many parameters to move.
    """
    small = dict(
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
        num_experts=8) if settings.quick else {}
    steps = {
        name:
        bench_training.simple(
            MODELS.build(dict(type='vim_mm.MoEDaViT', **small, **kwargs)),
            settings,
            BATCH,
            fused=True)
        for name, kwargs in dict(
            ours=dict(tasks=['cls', 'det', 'seg']), twin=dict(
                moe=None)).items()
    }
    times = take_turns(steps, settings.runs(5), settings.device, warmup=1)
    yield times.against('ours', 'twin',
                        peak_mb_on_gpu(steps['ours'], settings.device))


def operators(settings: Settings) -> Iterator[Result]:
    """Dispatched operators of a step that are no views, on the CPU."""
    settings = Settings('cpu', settings.quick)
    layer = experts(16, 64, dispatch='grouped')
    yield Result(count_operators(training_step(layer, 16, settings, 64)))


def waits(settings: Settings) -> Iterator[Result]:
    """How often a step waits for the GPU."""
    step = training_step(experts(384, 16), 384, settings)
    step()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        step()
        torch.cuda.set_sync_debug_mode('default')
    yield Result(sum('synchroniz' in str(each.message) for each in seen))


OPERATORS = 'operators of a step of experts'
BACKBONE = f'training step of MoE-DaViT-T, batch {BATCH}'
WAITS = 'waits of a step of experts, GPU bf16'
BENCHMARKS = [
    Benchmark(OPERATORS, [Goal(OPERATORS, '(a count)', 56)], operators),
    Benchmark(BACKBONE, [Goal(BACKBONE, 'its dense twin', 1.35)],
              whole_backbone),
    Benchmark(
        WAITS, [Goal(WAITS, '(a count)', 0)],
        lambda s: waits(Settings('cuda', s.quick)),
        needs_gpu=True)
]
for device, kind, widths in (('cpu', 'CPU fp32', (192, 384, 768)),
                             ('cuda', 'GPU bf16', (384, ))):
    for dims in widths:
        name = f'step of experts, {kind}, C={dims}'
        BENCHMARKS.append(
            Benchmark(
                name,
                goals(name),
                partial(beside_others, dims, device),
                needs_gpu=device == 'cuda'))

# --------------------------------------------------------------- the choice


def choice(settings: Settings) -> None:
    """Print milliseconds of each way by tokens and experts."""
    ways = ('loop', 'grouped', 'dense')
    dims = 384
    print('tokens  experts  ' + '  '.join(f'{way:>8}' for way in ways))
    for tokens in (1, 16, 64, 256, 1024, 4096):
        for num in (8, 16, 64):
            steps: Dict[str, Step] = {
                way:
                training_step(
                    experts(dims, num, dispatch=way), dims, settings, tokens)
                for way in ways
            }
            times = take_turns(steps, 9, settings.device)
            print(f'{tokens:6}  {num:7}  ' +
                  '  '.join(f'{min(times.seconds[way]) * 1e3:8.2f}'
                            for way in ways))


def products(dims: int, num: int, settings: Settings) -> Step:
    """The products of a step alone, of balanced rows that lie sorted."""
    where, size = place(settings), TOKENS * K // num
    x, y = torch.randn(2, TOKENS * K, dims, **where)
    weight = torch.randn(num, dims, dims, **where)
    ends = torch.arange(
        size,
        TOKENS * K + 1,
        size,
        dtype=torch.int32,
        device=settings.device)

    def step() -> None:
        for _ in range(2):  # layers
            segment_mm(x, weight.transpose(1, 2), ends)
            segment_mm(y, weight, ends)
            _segment_outer(x, y, ends, True)

    return step


def floor(settings: Settings) -> None:
    """Print what products alone, and a step, take of a dense MLP's step."""
    print('width  experts  products      step')
    for dims in (192, 384, 768):
        for num in TARGETS:
            steps = dict(
                products=products(dims, num, settings),
                step=training_step(experts(dims, num), dims, settings),
                dense=training_step(dense(dims), dims, settings))
            times = take_turns(steps, 15, settings.device)
            ratios = (times.against(name, 'dense').ratio
                      for name in ('products', 'step'))
            print(f'{dims:5}  {num:7}  ' +
                  '  '.join(f'{ratio:8.3f}' for ratio in ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description='Time ways of dispatch')
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--floor', action='store_true', help='time products alone')
    args = parser.parse_args()
    (floor if args.floor else choice)(Settings(args.device))


if __name__ == '__main__':
    main()

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: images generated together, and with a part of the tokens."""

from functools import partial
from typing import Any, Callable, Iterator, List, Optional

import torch
import vit_models
from harness import (Benchmark, Goal, Result, Settings, peak_mb_on_gpu,
                     take_turns)
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vim_mm.models.generators import GuidedGenerator
from vim_mm.registry import MODELS

BATCH, CLASSES = 16, 10
#: Steps of the run with all tokens; with fewer it may take up to twice that.
STEPS = 48
STRETCH = (1., 1.1, 1.25, 1.5, 2.)


def teacher(backbone: dict,
            width: int,
            neck: Optional[dict] = None,
            device: str = 'cpu') -> nn.Module:
    """A classifier with random weights."""
    model = dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            type='ClsDataPreprocessor', mean=[127.] * 3, std=[64.] * 3),
        backbone=backbone,
        neck=neck,
        head=dict(
            type='LinearClsHead', num_classes=CLASSES, in_channels=width))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model).to(device).eval()


def mobile_net(device: str) -> nn.Module:
    """MobileNetV2: 3.5 M parameters, BatchNorm."""
    return teacher(
        dict(type='MobileNetV2'), 1280, dict(type='GlobalAveragePooling'),
        device)


def transformer(settings: Settings, device: str) -> nn.Module:
    """The ViT of the other rows."""
    cfg = vit_models.vit(settings, out_type='cls_token')
    return teacher(cfg, cfg['arch']['embed_dims'], device=device)


def samples(number: int) -> List[DataSample]:
    return [
        DataSample().set_gt_label(index % CLASSES) for index in range(number)
    ]


def generator(model: nn.Module, images: Tensor, **kwargs) -> GuidedGenerator:
    """One that knows its teacher and the statistics of the guides."""
    made = GuidedGenerator(**kwargs)
    made.set_teacher(model)
    made.collect([(images, samples(len(images)))])
    return made


def together(make: Callable[[], nn.Module], side: int, steps: int, device: str,
             settings: Settings) -> Iterator[Result]:
    """A batch of images, and the same ones one at a time."""
    number = settings.batch(BATCH)
    images = torch.rand(number, 3, side, side, device=device)
    made = generator(make(), images, iterations=steps)
    labels = samples(number)

    def batch() -> Any:
        return made.generate(images, labels)

    def one_by_one() -> Any:
        for index in range(number):
            made.generate(images[index:index + 1], labels[index:index + 1])

    times = take_turns(
        dict(ours=batch, other=one_by_one), settings.runs(5), device, warmup=1)
    yield times.against('ours', 'other', peak_mb_on_gpu(batch, device))


def dropping(side: int, device: str, share: float,
             settings: Settings) -> Iterator[Result]:
    """Half of the tokens a step, until the loss is that of all tokens.

    Losses are measured with all tokens. Where that loss is not reached, the
    ratio is that of the longest run: a lower bound.
    """
    number = 4 if device == 'cpu' else BATCH
    images = torch.rand(number, 3, side, side, device=device)
    model, labels = transformer(settings, device), samples(number)
    steps = settings.runs(STEPS)
    # noise: a guide is where statistics have no gradient
    plain = generator(model, images, iterations=steps, noise=.1)
    wanted = loss_of(plain.generate(images, labels))
    for stretch in STRETCH:
        part = generator(
            model,
            images,
            iterations=round(stretch * steps),
            noise=.1,
            tokens=dict(share=share))
        if loss_of(part.generate(images, labels)) <= wanted:
            break
    runs = dict(
        ours=partial(part.generate, images, labels),
        other=partial(plain.generate, images, labels))
    times = take_turns(runs, settings.runs(3), device, warmup=0)
    yield times.against('ours', 'other', peak_mb_on_gpu(runs['ours'], device))


def loss_of(made: Any) -> float:
    """The mean loss of generated images."""
    return sum(own['loss'] for own in made.losses) / len(made.losses)


def on_cpu(settings: Settings) -> Iterator[Result]:
    """A network whose passes are mostly overhead: the case of small images."""
    yield from together(
        partial(mobile_net, 'cpu'), 32, settings.runs(10), 'cpu', settings)


def on_gpu(settings: Settings) -> Iterator[Result]:
    """A transformer of full size."""
    yield from together(
        partial(transformer, settings, 'cuda'), settings.size,
        settings.runs(20), 'cuda', settings)


SMALL = '16 images generated together, CPU, MobileNetV2, 32 px'
LARGE = '16 images generated together, GPU, ViT-B/16, 224 px'
FEWER = 'half of the tokens, to the loss of all, ViT-B/16, '
BENCHMARKS = [
    Benchmark(SMALL, [Goal(SMALL, 'one at a time', .25)], on_cpu),
    Benchmark(LARGE, [Goal(LARGE, 'one at a time', .25)], on_gpu, True),
    Benchmark(f'{FEWER}CPU, 112 px',
              [Goal(f'{FEWER}CPU, 112 px', 'all tokens', 1 / 1.5)],
              partial(dropping, 112, 'cpu', .5)),
    Benchmark(f'{FEWER}GPU, 224 px',
              [Goal(f'{FEWER}GPU, 224 px', 'all tokens', 1 / 1.5)],
              partial(dropping, 224, 'cuda', .5), True),
]

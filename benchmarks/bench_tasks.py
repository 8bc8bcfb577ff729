# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: several tasks on one trunk, for one image and in one batch."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import torch
import vit_models
from harness import (Benchmark, Goal, Result, Settings, peak_mb_on_gpu,
                     take_turns)
from mmengine.config import Config
from mmengine.registry import MODELS

from vim_mm.apis import ViMInferencer
from vim_mm.zoo import save_module

NUM_MODULES, NUM_CLASSES = 4, 10

# ------------------------------------------------------ one image, 8 tasks


def save_zoo(root: Path, settings: Settings, cfg: dict,
             adapter: dict) -> List[str]:
    """Write filled modules beside a trunk into a zoo; return their names."""
    names = [f'm{i}' for i in range(NUM_MODULES)]
    model = vit_models.backbone(
        settings, cfg, new_module=names[0], adapter=adapter)
    for name in names[1:]:
        model.add(name, adapter)
    vit_models.fill(model.bank)
    for name in names:
        save_module(model, name, str(root))
    return names


def save_task(folder: Path, name: str, backbone: dict,
              width: int) -> Tuple[str, str]:
    """Write the config of a classifier and what a training might leave."""
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(
                    backbone, fusion=dict(type='EnsMoE', tasks=[name])),
                neck=dict(type='mmpretrain.GlobalAveragePooling'),
                head=dict(
                    type='mmpretrain.LinearClsHead',
                    num_classes=NUM_CLASSES,
                    in_channels=width)),
            data_preprocessor=dict(
                type='mmpretrain.ClsDataPreprocessor',
                mean=[127.] * 3,
                std=[60.] * 3),
            visualizer=dict(type='Visualizer'),
            test_dataloader=dict(
                dataset=dict(
                    type='mmpretrain.CustomDataset',
                    metainfo=dict(classes=list('0123456789')),
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='PackInputs')
                    ]))))
    model = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
    vit_models.fill(model.backbone.fusion, 1.)
    vit_models.fill(model.head)
    paths = str(folder / f'{name}.py'), str(folder / f'{name}.pth')
    cfg.dump(paths[0])
    torch.save(dict(state_dict=model.state_dict(), meta={}), paths[1])
    return paths


def inferencer(folder: Path, settings: Settings, num: int,
               adapter: dict) -> ViMInferencer:
    """Tasks over one zoo, each with gates and a head of its own."""
    stages = [0, 1] if settings.quick else [2, 5, 8, 11]
    cfg = vit_models.vit(settings, out_type='featmap', out_indices=stages)
    weights = MODELS.build(cfg)
    weights.init_weights()
    torch.save(dict(state_dict=weights.state_dict()), folder / 'trunk.pth')
    cfg['init_cfg'] = dict(
        type='Pretrained', checkpoint=str(folder / 'trunk.pth'))
    backbone = dict(
        type='vim_mm.ViMBackbone',
        trunk=cfg,
        zoo=str(folder / 'zoo'),
        modules=save_zoo(folder / 'zoo', settings, cfg, adapter),
        probe_size=settings.size)
    tasks = {
        f't{i}': save_task(folder, f't{i}', backbone, weights.embed_dims)
        for i in range(num)
    }
    return ViMInferencer(tasks, settings.device, show_progress=False)


def one_image(adapter: dict, settings: Settings) -> Iterator[Result]:
    """All tasks' answers to an image against one pass and all heads."""
    num = 2 if settings.quick else 8
    with TemporaryDirectory() as folder:
        served = inferencer(Path(folder), settings, num, adapter)
    names, side = list(served.tasks), settings.size
    image = np.random.default_rng(0).integers(
        256, size=(side, side, 3), dtype=np.uint8)
    models = [task.model for task in served.tasks.values()]
    x = settings.images(1)

    def ours() -> Dict[str, Any]:
        return served(image, True, num, task=names)

    @torch.no_grad()
    def one_pass() -> List[Any]:
        features = models[0].backbone.read_levels(x)
        return [m.head.predict(m.neck(features)) for m in models]

    times = take_turns(
        dict(ours=ours, one_pass=one_pass), settings.runs(20), settings.device)
    yield times.against('ours', 'one_pass',
                        peak_mb_on_gpu(ours, settings.device))


# ---------------------------------------------------- one batch, four tasks


def peft_mixed_batch(settings: Settings, names: List[str]) -> Any:
    """A trunk with a filled LoRA of each name, in PEFT's inference form."""
    from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=vit_models.RANK, lora_alpha=16, target_modules=['qkv', 'proj'])
    model = get_peft_model(
        vit_models.trunk(settings), config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    for name, param in model.named_parameters():
        if 'lora_' in name:
            torch.nn.init.normal_(param, std=.02)
    return model.requires_grad_(False).eval().to(settings.device)


def mixed_batch(settings: Settings) -> Iterator[Result]:
    """Every image of a batch has a task of its own."""
    tasks = [f't{i}' for i in range(4)]
    model = vit_models.bank(settings, NUM_MODULES, tasks=tasks)
    per_task = 1 if settings.quick else 2
    of_image = tasks * per_task
    x = settings.images(len(of_image))
    other = peft_mixed_batch(settings, tasks)

    @torch.no_grad()
    def ours() -> Any:
        with model.for_tasks(of_image):
            return model(x)

    @torch.no_grad()
    def calls() -> None:
        for index, task in enumerate(tasks):
            model.select_task(task)
            model(x[index::len(tasks)])

    @torch.no_grad()
    def peft() -> Any:
        return other(x, adapter_names=of_image)

    times = take_turns(
        dict(ours=ours, peft=peft, calls=calls), settings.runs(20),
        settings.device)
    peak = peak_mb_on_gpu(ours, settings.device)
    yield times.against('ours', 'peft', peak)
    yield times.against('ours', 'calls', peak)


MIXED = 'batch of four tasks'
BENCHMARKS = [
    *(Benchmark(f'eight tasks on one image, {kind}', [
        Goal(f'eight tasks on one image, {kind}', 'one trunk pass + heads',
             1.3)
    ], partial(one_image, dict(type=f'vim_mm.{kind}')))
      for kind in ('ConvPass', 'SideLadder')),
    Benchmark(MIXED, [
        Goal(MIXED, "peft's mixed batch, LoRA of rank 8", 1.),
        Goal(MIXED, 'a call for each task', 1.)
    ], mixed_batch),
]

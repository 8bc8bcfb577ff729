# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: a midstream training step, its time and its peak memory.

    python benchmarks/bench_training.py 'ConvPass'  # one step's peak, in MB

A step is a forward pass, a loss, a backward pass and AdamW, of a backbone
with a linear head. In fp32 on a CPU, under bf16 autocast on a GPU.

Peak memory on a GPU is what torch's allocator gave out. On a CPU every
contestant has a process of its own, and its peak is what the system counts,
above what it held before the model was built; every large tensor is mapped
alone there, so that what is freed is given back.
"""

import vim_mm  # noqa: F401,I001 isort:skip

import argparse
import gc
import os
import re
import subprocess
import sys
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import torch
import torch.nn.functional as F
import vit_models
from harness import (Benchmark, Goal, Result, Settings, Times, peak_mb_on_gpu,
                     take_turns)
from mmengine.logging import MMLogger
from torch import Tensor, nn

NUM_CLASSES, BATCH = 100, 8
Step = Callable[[], None]


def training_step(features: Callable[[Tensor], Tensor],
                  params: Iterable[nn.Parameter],
                  settings: Settings,
                  batch: int = BATCH,
                  fused: bool = False) -> Step:
    """A step of what learns of a backbone, and of a linear head.

    Args:
        features (Callable): From images to vectors, (B, C).
        params (Iterable[Parameter]): Those of the backbone that learn.
        settings (Settings): Size of images.
        batch (int): Their number.
        fused (bool): Whether AdamW passes over the parameters once, not ten
            times. Defaults to False.
    """
    device = settings.device
    x = settings.images(settings.batch(batch))
    labels = torch.randint(NUM_CLASSES, (len(x), ), device=device)
    with torch.no_grad():
        head = nn.Linear(features(x).shape[-1], NUM_CLASSES).to(device)
    optimizer = torch.optim.AdamW(
        [*params, *head.parameters()], lr=1e-4, fused=fused)

    def step() -> None:
        with torch.autocast(
                x.device.type, torch.bfloat16,
                enabled=device.startswith('cuda')):
            loss = F.cross_entropy(head(features(x)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def learning(model: nn.Module) -> List[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def last(outputs: Any) -> Tensor:
    """Class token of the last stage, or the mean of its map."""
    out = outputs[-1] if isinstance(outputs, (list, tuple)) else outputs
    return out.mean((2, 3)) if out.dim() == 4 else out


def simple(model: nn.Module,
           settings: Settings,
           batch: int = BATCH,
           fused: bool = False) -> Step:
    model.to(settings.device).train()
    return training_step(lambda x: last(model(x)), learning(model), settings,
                         batch, fused)


# -------------------------------------------------------------- contestants


def full(settings: Settings) -> Step:
    """Everything learns."""
    model = vit_models.trunk(settings)
    return simple(model.requires_grad_(True), settings)


def conv_pass(settings: Settings) -> Step:
    return simple(
        vit_models.backbone(
            settings, new_module='m', adapter=dict(type='ConvPass')), settings)


def lora_config() -> Any:
    from peft import LoraConfig
    return LoraConfig(
        r=vit_models.RANK, lora_alpha=16, target_modules=['qkv', 'proj'])


def peft_lora(settings: Settings) -> Step:
    """On the same trunk as ours."""
    from peft import get_peft_model
    return simple(
        get_peft_model(vit_models.trunk(settings), lora_config()), settings)


def timm_lora(settings: Settings) -> Step:
    """PEFT on timm's ViT-B/16, which most of its users have."""
    import timm
    from peft import get_peft_model
    arch = vit_models.TINY
    size = dict(
        embed_dim=arch['embed_dims'],
        depth=arch['num_layers'],
        num_heads=arch['num_heads'],
        mlp_ratio=2) if settings.quick else {}
    model = timm.create_model(
        'vit_base_patch16_224', img_size=settings.size, num_classes=0, **size)
    config = lora_config()
    config.target_modules = r'.*attn\.(qkv|proj)'
    return simple(get_peft_model(model, config), settings)


def mmpretrain_lora(settings: Settings) -> Step:
    from mmpretrain.models.peft import LoRAModel
    model = LoRAModel(
        module=vit_models.vit(settings),
        rank=vit_models.RANK,
        alpha=16,
        targets=[dict(type=r'.*attn\.qkv'),
                 dict(type=r'.*attn\.proj')])
    return simple(model, settings)


def ladder(settings: Settings) -> nn.Module:
    stages = [0, 1] if settings.quick else [2, 5, 8, 11]
    model = vit_models.backbone(
        settings,
        vit_models.vit(settings, out_type='featmap', out_indices=stages),
        new_module='m',
        adapter=dict(type='SideLadder'))
    return model.to(settings.device).train()


def plugin_neck(settings: Settings) -> Step:
    return simple(ladder(settings), settings)


def cached(settings: Settings) -> Step:
    """The plug-in neck learns on levels that the trunk gave once."""
    model = ladder(settings)
    with torch.no_grad():
        levels = model.trunk(settings.images(settings.batch(BATCH)))
    model.trunk.forward = lambda x: levels
    return simple(model, settings)


FULL = 'full fine-tuning'
CONTESTANTS: Dict[str, Callable[[Settings], Step]] = {
    FULL: full,
    'ConvPass': conv_pass,
    'LoRA of peft': peft_lora,
    "LoRA of peft on timm's ViT": timm_lora,
    'LoRAModel of mmpretrain': mmpretrain_lora,
    'plug-in neck': plugin_neck,
    'plug-in neck, cached features': cached,
}

# ------------------------------------------------------------------- memory


def resident_mb(field: str) -> float:
    """Megabytes of this process: 'VmRSS' now, 'VmHWM' at most.

    Not by ``getrusage``: its peak is inherited from the parent process.
    """
    with open('/proc/self/status') as file:
        return int(re.search(rf'{field}:\s+(\d+)', file.read())[1]) / 1e3


def peak_mb_here(name: str, settings: Settings) -> float:
    """Megabytes that three steps of a contestant take at most."""
    # a tiny step first: what libraries load and keep is nobody's memory
    CONTESTANTS[name](Settings(settings.device, quick=True))()
    gc.collect()
    before = resident_mb('VmRSS')
    step = CONTESTANTS[name](settings)
    for _ in range(3):
        step()
    if settings.device.startswith('cuda'):
        return peak_mb_on_gpu(step, settings.device)
    return max(resident_mb('VmHWM') - before, .1)


def peak_mb(name: str, settings: Settings) -> float:
    """The same in a process of its own."""
    command = [
        sys.executable, '-W', 'ignore', __file__, name, '--device',
        settings.device
    ]
    environment = dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536')
    done = subprocess.run(
        command + ['--quick'] * settings.quick,
        env=environment,
        capture_output=True,
        text=True)
    if done.returncode:
        raise RuntimeError(f"The memory of '{name}' was not measured: "
                           f'{done.stderr.strip().splitlines()[-1]}')
    return float(done.stdout.split()[-1])


# --------------------------------------------------------------------- rows


def midstream(names: Tuple[str, ...],
              settings: Settings) -> Tuple[Times, Dict[str, float]]:
    """Times and peaks of contestants that take turns."""
    steps = {name: CONTESTANTS[name](settings) for name in names}
    times = take_turns(steps, settings.runs(7), settings.device, warmup=1)
    del steps
    return times, {name: peak_mb(name, settings) for name in names}


def beside_lora(settings: Settings) -> Iterator[Result]:
    """Our ConvPass against full fine-tuning and each LoRA."""
    ours, others = 'ConvPass', (FULL, *LORA)
    times, peaks = midstream((ours, *others), settings)
    for other in others:
        yield times.against(ours, other, peaks[ours])
        yield Result(peaks[ours] / peaks[other], peak_mb=peaks[ours])


def beside_trunk(settings: Settings) -> Iterator[Result]:
    """The plug-in neck, with and without cached features."""
    ways = ('plug-in neck', 'plug-in neck, cached features')
    times, peaks = midstream((*ways, FULL), settings)
    for ours in ways:
        yield times.against(ours, FULL, peaks[ours])


LORA = [name for name in CONTESTANTS if name.startswith('LoRA')]
CONV = 'midstream step, ConvPass + linear head'
NECK = 'midstream step, plug-in neck + linear head'


def goals() -> List[Goal]:
    """Time and peak memory against each opponent."""
    targets = {FULL: (.68, .45), **dict.fromkeys(LORA, (1., 1.))}
    return [
        Goal(f'{CONV}: {what}', other, target)
        for other, both in targets.items()
        for what, target in zip(('time', 'peak memory'), both)
    ]


BENCHMARKS = [
    Benchmark(CONV, goals(), beside_lora),
    Benchmark(
        NECK,
        [Goal(NECK, FULL, .32),
         Goal(f'{NECK}, cached features', FULL, .05)], beside_trunk),
]


def main() -> None:
    parser = argparse.ArgumentParser(description='Peak memory of a step')
    parser.add_argument('name', choices=list(CONTESTANTS))
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--quick', action='store_true')
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    print(peak_mb_here(args.name, Settings(args.device, args.quick)))


if __name__ == '__main__':
    main()

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Variants run from one start, and are judged as they stand."""

import mmap
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from _tiny import (Pictures, build_runner, fusion_neck, model_cfg, same,
                   snapshot, vit)
from vim_mm.report import comparison
from vim_mm.report.comparison import (SameHeadHook, peak_memory_mb,
                                      reset_peak_memory, run_variant)
from vim_mm.report.variants import Variant


def test_a_variant_is_judged_after_warm_up_and_after_training(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def build(cfg: Config) -> Runner:
        backbone = dict(trunk=vit(), new_module='m')
        model = model_cfg('cls', backbone, fusion_neck('cls'))
        judged = dict(
            dataset=Pictures('cls'),
            batch_size=4,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'))
        return build_runner(
            'cls',
            model,
            tmp_path,
            train_cfg=dict(by_epoch=False, max_iters=3, val_interval=100),
            val_cfg=dict(),
            val_dataloader=judged,
            val_evaluator=dict(type='mmpretrain.Accuracy', topk=(1, )),
            custom_hooks=[
                dict(type='vim_mm.WarmHeadHook', epochs=1, evaluate=True)
            ])

    monkeypatch.setattr(comparison.Runner, 'from_cfg', build)
    result, runner = run_variant(
        Variant(('warm', 'trained'), Config()), str(tmp_path / 'step'), {})
    warm, trained = result.stages['warm'], result.stages['trained']
    # in tenths, and this takes about one
    assert 0 <= warm.seconds <= trained.seconds
    assert 0 < warm.peak_mb <= trained.peak_mb
    assert warm.metrics.keys() == trained.metrics.keys()
    assert (result.n_train, result.n_test) == (8, 8)
    # judged as it stands at the end
    assert runner.val_loop.run() == trained.metrics
    assert result.gates['layers.0.attn'] == dict(m=1.)
    # what is compared by is no metric: before training
    with pytest.raises(ValueError, match='waits for the metric .AP., and a '
                       'validation gives accuracy/top1'):
        run_variant(Variant(('trained', ), Config()), str(tmp_path), {}, 'AP')


def test_heads_start_alike_whatever_the_modules(tmp_path: Path) -> None:
    start, heads, banks = {}, [], []
    for module in ('m', 'other-and-wider'):
        adapter = dict(type='ConvPass', hidden_dims=len(module))
        backbone = dict(trunk=vit(), new_module=module, adapter=adapter)
        run = build_runner(
            'seg', model_cfg('seg', backbone, fusion_neck('seg')),
            tmp_path / module, iters=1)
        drawn = snapshot(run.model.decode_head)
        SameHeadHook(start).before_train(run)
        banks.append(snapshot(run.model.backbone))
        heads.append(snapshot(run.model.decode_head))
    assert same(*heads) and not same(drawn, heads[1])
    assert banks[0].keys() != banks[1].keys()
    # what the first one learns later does not move the start
    with torch.no_grad():
        run.model.decode_head.conv_seg.weight.add_(1)
    SameHeadHook(start).before_train(run)
    assert same(snapshot(run.model.decode_head), heads[0])


def resident_mb(field: str) -> float:
    status = Path('/proc/self/status').read_text()
    return int(status.split(f'{field}:')[1].split()[0]) / 2**10


def touch(megabytes: int) -> mmap.mmap:
    """Memory that is resident until it is closed, whatever the allocator."""
    block = mmap.mmap(-1, megabytes << 20)
    block[::4096] = b'x' * (megabytes << 8)
    return block


def test_peak_memory_is_per_method() -> None:
    try:  # some kernels take the request and do nothing
        touch(200).close()
        Path('/proc/self/clear_refs').write_text('5')
        obeyed = resident_mb('VmHWM') < resident_mb('VmRSS') + 50
    except (OSError, IndexError):
        obeyed = False
    if not obeyed:
        pytest.skip('this system cannot reset a peak')
    block = touch(200)
    high = peak_memory_mb()
    block.close()
    reset_peak_memory()
    assert peak_memory_mb() < high - 150

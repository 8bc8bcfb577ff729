# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Gates appear among the scalars of a run."""

import json
from pathlib import Path

import pytest

from _tiny import build_runner, fusion_neck, model_cfg, vit


def test_scalars_of_every_slot_and_module(tmp_path: Path) -> None:
    backbone = dict(
        trunk=vit(), new_module='n', fusion=dict(type='vim_mm.EnsMoE'))
    run = build_runner(
        'cls',
        model_cfg('cls', backbone, fusion_neck('cls')),
        tmp_path,
        iters=4,
        visualizer=dict(
            type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        custom_hooks=[dict(type='vim_mm.GateLogHook', interval=2)])
    run.train()
    path, = tmp_path.rglob('vis_data/scalars.json')
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records = [r for r in records if any(k.startswith('gates/') for k in r)]
    assert [r['step'] for r in records] == [0, 2, 4]
    for record in records:
        gates = {k: v for k, v in record.items() if k.startswith('gates/')}
        assert gates == pytest.approx({
            f'gates/layers.{i}.{branch}/n': 1.
            for i in range(3) for branch in ('attn', 'ffn')
        })

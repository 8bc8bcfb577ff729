# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The upstream release of `make demo-student`: codes of photographs, 64 px.

    python tools/release.py publish configs/ota/demo_release.py \\
        --out work_dirs/demo_student/release/published

Upstream images are crops of the photographs that carry the demo's digits, and
stand for those of a trunk, which are not at hand. Minutes on two CPU cores.
Sizes and lengths are ours.
"""
_base_ = './release_coco_64px.py'

_root = '{{$VIM_MM_DEMO_DATA:data/demo}}/digits_on_photographs/'
train_dataloader = dict(
    dataset=dict(data_root=_root, data_prefix='midstream/img'))
held_out_dataloader = dict(
    dataset=dict(data_root=_root, data_prefix='midstream_val/img'))

release_card = dict(
    name='photographs-64px',
    data='Crops of photographs of scikit-image and scikit-learn, 64 px',
    licence='that of the packages, BSD-3-Clause; photographs: see there')

model = dict(codebook_size=256)
max_iters = 500
train_cfg = dict(max_iters=max_iters)
param_scheduler = dict(total_steps=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))

#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12: a OneCycleLR gives all parameters its one `eta_max`,
# so `lr_mult` of `paramwise_cfg` changes nothing, not even one of 0, which
# other schedules keep.
#
# Seen: rates in the middle of 10 steps, of the part with lr_mult 0 and of the
# other: CosineAnnealingLR 0 and above 0, OneCycleLR 0.1 and 0.1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 \
    "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
from mmengine import __version__
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

assert __version__ == '0.10.12', __version__


def rates(schedule):
    """Of backbone and head in the middle of ten steps."""
    model = nn.ModuleDict(dict(backbone=nn.Linear(2, 2, bias=False),
                               head=nn.Linear(2, 2, bias=False)))
    wrapper = build_optim_wrapper(model, dict(
        type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1),
        paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.)))))
    scheduler = PARAM_SCHEDULERS.build(dict(
        schedule, by_epoch=False, optimizer=wrapper))
    for _ in range(5):
        wrapper.optimizer.step()
        scheduler.step()
    return [group['lr'] for group in wrapper.param_groups]


cosine = rates(dict(type='CosineAnnealingLR', T_max=10))
cycle = rates(dict(type='OneCycleLR', eta_max=0.1, total_steps=10,
                   pct_start=0.6))
print(f'backbone (lr_mult 0) and head, CosineAnnealingLR: {cosine}, '
      f'OneCycleLR: {cycle}')
assert cosine[0] == 0 < cosine[1] and cycle[0] == cycle[1] > 0.09, \
    'it has changed'
EOF

#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmsegmentation 1.4.2: configs that come with the libraries still hold
# settings that only the first generation of runners read. mmengine passes over keys
# that it does not know, so nobody says that they do nothing. MAE's configs, named
# `amp`, ask for `fp16 = dict(loss_scale='dynamic')` beside a plain OptimWrapper, so
# they compute in float32. Likewise in onedl-mmdetection 3.5.1: GA-Fast R-CNN asks by
# `optimizer_config` for gradients clipped at a norm of 35, and they are not.
#
# Seen: an optimizer wrapper that neither casts nor clips, from both configs.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install -q "$@"; }
pip torch==2.14.1 torchvision numpy==2.2.6 setuptools onedl-mmengine==0.10.12 \
    onedl-mmcv==2.3.6 opencv-python-headless==4.12.0.88
# their configs are all that is read
pip --no-deps onedl-mmsegmentation==1.4.2 onedl-mmdetection==3.5.1
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
from importlib import metadata
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, build_optim_wrapper

CASES = [
    ('onedl-mmsegmentation',
     'mmseg/.mim/configs/mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py',
     'fp16'),
    ('onedl-mmdetection', 'mmdet/.mim/configs/guided_anchoring/'
     'ga-fast-rcnn_r50-caffe_fpn_1x_coco.py', 'optimizer_config'),
]
for package, path, key in CASES:
    found = metadata.distribution(package)
    cfg = Config.fromfile(found.locate_file(path))
    asked = cfg[key].to_dict()
    given = {k: v for k, v in cfg.optim_wrapper.items()
             if k not in ('constructor', 'paramwise_cfg')}
    wrapper = build_optim_wrapper(torch.nn.Linear(2, 2), given)
    casts = isinstance(wrapper, AmpOptimWrapper)
    print(f'{package} {found.version}, {Path(path).name}: {key} = {asked}; '
          f'{type(wrapper).__name__}, casts: {casts}, clips: '
          f'{wrapper.clip_grad_kwargs}')
    assert asked and not casts and not wrapper.clip_grad_kwargs, 'it changed'
PY

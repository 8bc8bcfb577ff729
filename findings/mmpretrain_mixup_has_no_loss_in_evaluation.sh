#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmpretrain 1.3.6: a classifier whose config mixes images (Mixup) has no loss of
# images that are preprocessed as in evaluation. With `augments` its data preprocessor
# turns labels into scores, also where it mixes nothing, and leaves them whole numbers;
# only mixing makes floats of them. So a loss on validation images, or of a teacher,
# ends in an error of torch about probabilities.
#
# Seen: scores of float32 and a loss in training; scores of int64 and a RuntimeError
# ("Expected floating point type for target with class probabilities, got Long") with
# `training=False`; without `augments` the same loss in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmpretrain==1.3.6 \
    transformers==4.57.6 "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import torch
from mmpretrain import __version__
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

assert __version__ == '1.3.6', __version__


def loss(mixes, training):
    torch.manual_seed(0)
    model = ImageClassifier(
        backbone=dict(type='ResNet', depth=18),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
        data_preprocessor=dict(num_classes=3),
        train_cfg=dict(augments=[dict(type='Mixup', alpha=.2)])
        if mixes else None)
    data = model.data_preprocessor(
        dict(inputs=[torch.zeros(3, 32, 32, dtype=torch.uint8)] * 2,
             data_samples=[DataSample().set_gt_label(i) for i in (0, 2)]),
        training=training)
    sample = data['data_samples'][0]
    kind = sample.gt_score.dtype if 'gt_score' in sample else 'no scores'
    try:
        found = round(float(model(**data, mode='loss')['loss']), 4)
    except RuntimeError as error:
        found = str(error)
    print(f'Mixup {mixes}, training={training}: {kind}, {found}')
    return found


plain = loss(False, True)
assert loss(False, False) == plain
assert loss(True, True) == plain  # all images are black
assert 'got Long' in loss(True, False), 'it changed'
PY

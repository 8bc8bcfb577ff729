#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmpretrain 1.3.6: `ImageClassifier` writes the `augments` of `train_cfg`
# into the `data_preprocessor` dict that it is given. Another classifier built with
# the same dict, and without `train_cfg`, mixes its training images too.
#
# Seen: the dict has new keys `type` and `batch_augments`; the second model, with
# no train_cfg, has a RandomBatchAugment.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmpretrain==1.3.6 \
    transformers==4.57.6 "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
from mmpretrain import __version__
from mmpretrain.models import ImageClassifier

assert __version__ == '1.3.6', __version__
preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1])
mixup = dict(augments=dict(type='Mixup', alpha=.2))
resnet = dict(type='ResNet', depth=18)
ImageClassifier(
    resnet, data_preprocessor=preprocessor, train_cfg=mixup)
second = ImageClassifier(resnet, data_preprocessor=preprocessor)
augments = type(second.data_preprocessor.batch_augments).__name__
print('the dict afterwards:', preprocessor)
print('a model without train_cfg augments by:', augments)
assert sorted(preprocessor) == ['batch_augments', 'mean', 'std', 'type']
assert augments == 'RandomBatchAugment', 'it has changed'
EOF

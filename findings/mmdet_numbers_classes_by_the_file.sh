#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmdetection 3.5.1: `CocoDataset` numbers labels in the order of the
# annotation file's categories, and `metainfo.classes` only chooses among them; the
# names it reports stay in the order that was asked for, so they do not fit.
#
# Seen: a dog in a file of (cat, dog), read with classes=('dog', 'cat'), has
# label 1, which `metainfo` calls a cat.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1 \
    "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class Ops(ModuleType):
    """Stands for mmcv's compiled operators, which nothing here runs."""

    def __getattr__(self, name):
        if name.startswith('__'):  # such as `__file__`, which it lacks
            raise AttributeError(name)
        return lambda *args, **kwargs: None


ops = Ops('mmcv._ext')
ops.__spec__ = ModuleSpec('mmcv._ext', None)
sys.modules['mmcv._ext'] = ops

import json
import tempfile

import mmdet
from mmdet.datasets import CocoDataset

assert mmdet.__version__ == '3.5.1'
content = dict(
    images=[dict(id=1, file_name='a.jpg', width=8, height=8)],
    categories=[dict(id=1, name='cat'), dict(id=2, name='dog')],
    annotations=[
        dict(id=1, image_id=1, category_id=2, bbox=[0, 0, 4, 4], area=16,
             iscrowd=0)
    ])
with tempfile.NamedTemporaryFile('w', suffix='.json') as file:
    json.dump(content, file)
    file.flush()
    classes = ('dog', 'cat')
    data = CocoDataset(
        data_prefix=dict(img=''),
        ann_file=file.name, metainfo=dict(classes=classes), pipeline=[])
label = data.get_data_info(0)['instances'][0]['bbox_label']
print(f'a dog, with classes={classes}: label {label}, which is a '
      f'{data.metainfo["classes"][label]}')
assert data.metainfo['classes'][label] == 'cat', 'it has changed'
EOF

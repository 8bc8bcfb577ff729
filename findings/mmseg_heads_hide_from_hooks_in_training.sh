#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmsegmentation 1.4.2: the loss of a decode head calls `self.forward`, not the
# head, so a forward hook on it never fires in training, while it does in inference.
#
# Seen: no call in `loss()`, one in a call of the head.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmsegmentation==1.4.2 \
    ftfy==6.3.1 regex==2026.11.15 \
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

import mmseg
import torch
from mmengine.structures import PixelData
from mmseg.models import FCNHead
from mmseg.structures import SegDataSample

assert mmseg.__version__ == '1.4.2'
head = FCNHead(
    in_channels=4, channels=4, num_classes=2, num_convs=1, concat_input=False)
calls = []
head.register_forward_hook(lambda *_: calls.append('called'))
maps = [torch.randn(2, 4, 8, 8)]
labels = PixelData(data=torch.zeros(1, 8, 8, dtype=torch.long))
samples = [SegDataSample(gt_sem_seg=labels) for _ in range(2)]
head.loss(maps, samples, {})
in_training = len(calls)
head(maps)
print(f'calls that a forward hook saw: {in_training} in loss(), '
      f'{len(calls) - in_training} in a call of the head')
assert (in_training, len(calls)) == (0, 1), 'it has changed'
EOF

#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmdetection 3.5.1: decoding of boxes relative to points fails while a
# model is exported to ONNX, and there alone: `distance2bbox` then imports
# `mmdet.core.export`, which mmdetection 3 does not have.
#
# Seen: boxes in eager mode, ModuleNotFoundError 'mmdet.core' in an export.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1 \
    onnx==1.23.2 "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import io

import torch
from mmdet import __version__
from mmdet.structures.bbox.transforms import distance2bbox

assert __version__ == '3.5.1', __version__


class Decode(torch.nn.Module):

    def forward(self, points, distances):
        return distance2bbox(points, distances, (32, 32))


inputs = torch.rand(5, 2) * 32, torch.rand(5, 4) * 8
print('eager:', tuple(Decode()(*inputs).shape))
try:
    torch.onnx.export(Decode(), inputs, io.BytesIO(), dynamo=False)
    seen = 'exported'
except ModuleNotFoundError as error:
    seen = str(error)
print('in an export:', seen)
assert seen == "No module named 'mmdet.core'", 'it has changed'
EOF

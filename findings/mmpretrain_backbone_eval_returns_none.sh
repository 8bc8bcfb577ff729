#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmpretrain 1.3.6: `eval()` and `train()` of a backbone return None, where
# those of every torch module return the module: `BaseBackbone.train` has no
# return. `net = ResNet(18).eval()` is None; the classifier around it is not.
#
# Seen: None for ResNet and VisionTransformer, a module for ImageClassifier.
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
from mmpretrain.models import ImageClassifier, ResNet, VisionTransformer

assert __version__ == '1.3.6', __version__
seen = {
    type(net).__name__: type(net.eval()).__name__
    for net in (ResNet(18), VisionTransformer('deit-tiny'),
                ImageClassifier(dict(type='ResNet', depth=18)))
}
print('what eval() returns:', seen)
assert seen == dict(
    ResNet='NoneType', VisionTransformer='NoneType',
    ImageClassifier='ImageClassifier'), 'it has changed'
EOF

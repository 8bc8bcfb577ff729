#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# timm 1.0.31: `create_model(features_only=True, pretrained=True)` drops the head of
# a local file where the model's own pretrained config names a classifier of some
# classes, and refuses the same kind of file where that config has none (DINOv3,
# SigLIP, EVA-02 backbones).
#
# Seen: a DINOv3 file with a head is refused, an ImageNet ViT's is not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 \
    numpy==2.2.6 timm==1.0.31 safetensors==0.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import tempfile
from pathlib import Path

import timm
from safetensors.torch import save_file

assert timm.__version__ == '1.0.31'
refused = {}
for name in ('vit_small_patch16_dinov3', 'vit_small_patch16_224'):
    whole = timm.create_model(name, num_classes=5)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.safetensors')
        save_file(whole.state_dict(), file)
        try:
            timm.create_model(name, features_only=True, pretrained=True,
                              pretrained_cfg_overlay=dict(file=str(file)))
            refused[name] = False
        except RuntimeError as error:
            refused[name] = 'head.weight' in str(error)
print('a file with a head, read for features alone, is refused:', refused)
assert list(refused.values()) == [True, False], 'it has changed'
EOF

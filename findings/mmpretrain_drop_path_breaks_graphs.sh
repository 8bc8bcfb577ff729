#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmpretrain 1.3.6: the `drop_prob` of every DropPath of a ViT is a
# `numpy.float64` (from `np.linspace`), also with a rate of zero. torch.compile
# takes it for an input of the graph and cannot decide `drop_prob == 0.`.
#
# Seen: 7 graph breaks in 3 blocks, `fullgraph=True` raises Unsupported; none once
# each rate is a Python float.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision==0.29.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmpretrain==1.3.6 \
    transformers==4.57.6 "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import numpy as np
import torch
import torch._dynamo
from mmpretrain import __version__
from mmpretrain.models import VisionTransformer

assert __version__ == '1.3.6', __version__
arch = dict(
    embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)
net = VisionTransformer(arch=arch, img_size=32, patch_size=16)
net.eval()
x = torch.ones(1, 3, 32, 32)
drops = [m for m in net.modules() if type(m).__name__ == 'DropPath']
kinds = {type(drop.drop_prob) for drop in drops}
breaks = torch._dynamo.explain(net)(x).graph_break_count
torch._dynamo.reset()
try:
    torch.compile(net, backend='eager', fullgraph=True)(x)
    error = None
except torch._dynamo.exc.Unsupported as unsupported:
    error = str(unsupported).splitlines()[0]
for drop in drops:
    drop.drop_prob = float(drop.drop_prob)
torch._dynamo.reset()
after = torch._dynamo.explain(net)(x).graph_break_count
print(f'{kinds}: {breaks} graph breaks, {error}; floats: {after}')
assert kinds == {np.float64} and breaks == 7 and after == 0, 'it has changed'
assert error == 'Data-dependent branching', 'it has changed'
EOF

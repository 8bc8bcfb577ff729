#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12: `turn_on_activation_checkpointing`, behind the
# `activation_checkpointing` key of a config, sets `module.forward` to a closure
# over the module. A deep copy keeps that closure, so the averaged model of EMAHook
# (`ExponentialMovingAverage`) runs the weights of the original.
#
# Seen: when the original's weights are set to zero, the averaged model's own
# weights stay as they are, and its output becomes zero.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 opencv-python-headless==4.12.0.88
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import torch
from mmengine import __version__
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.activation_checkpointing import \
    turn_on_activation_checkpointing
from torch import nn

assert __version__ == '0.10.12', __version__


def averaged_output(checkpointed):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    if checkpointed:
        turn_on_activation_checkpointing(net, ['0', '1'])
    average = ExponentialMovingAverage(net)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
    weight = float(average.module[1].weight.abs().max())
    x = torch.ones(1, 4, requires_grad=True)
    return weight > 0, float(average(x).abs().max()) > 0


seen = {flag: averaged_output(flag) for flag in (False, True)}
for flag, (weight, output) in seen.items():
    print(f'checkpointed: {flag}; average has weights: {weight}, '
          f'output: {output}')
assert seen == {False: (True, True), True: (True, False)}, 'it has changed'
EOF

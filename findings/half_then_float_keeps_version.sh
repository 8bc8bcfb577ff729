#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1: `module.half().float()` rounds every parameter, yet neither the
# identity nor `_version` of a parameter changes, since values are set through
# `.data`. A cache of something derived from parameters, keyed by `_version`, as
# autograd's own check of in-place changes is, does not notice.
#
# Seen: values differ, id and _version are the same. An in-place change under
# no_grad does raise the version.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import torch
from torch import nn

assert torch.__version__.startswith('2.14.1'), torch.__version__
torch.manual_seed(0)
net = nn.Linear(8, 8)
weight, version = net.weight, net.weight._version
values = weight.detach().clone()
net.half().float()
seen = dict(
    same_parameter=net.weight is weight,
    same_version=weight._version == version,
    same_values=torch.equal(weight, values))
print('after half().float():', seen)
assert seen == dict(
    same_parameter=True, same_version=True, same_values=False), 'changed'
with torch.no_grad():
    weight.mul_(2)
print('version before and after mul_ under no_grad:', version, weight._version)
assert weight._version == version + 1, 'it has changed'
EOF

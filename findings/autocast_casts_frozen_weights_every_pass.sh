#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1: inside one autocast context the weight cache keeps the low
# precision copy of a weight that requires gradients, and never that of a frozen
# one (`requires_grad=False`), also under no_grad. A frozen network casts all its
# weights in every pass.
#
# Seen: 12 linear layers called twice in one context cast 24 tensors (weights and
# biases) and then 0 when they learn, 24 and 24 when they are frozen.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

assert torch.__version__.startswith('2.14.1'), torch.__version__


class CountCasts(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def casts(learns):
    net = nn.Sequential(*[nn.Linear(32, 32) for _ in range(12)])
    net.requires_grad_(learns)
    x, found = torch.randn(4, 32, dtype=torch.bfloat16), []
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        for _ in range(2):
            with CountCasts() as counter:
                net(x)
            found.append(counter.count)
    return found


seen = dict(learning=casts(True), frozen=casts(False))
print('casts of two passes in one autocast context:', seen)
assert seen == dict(learning=[24, 0], frozen=[24, 24]), 'it has changed'
EOF

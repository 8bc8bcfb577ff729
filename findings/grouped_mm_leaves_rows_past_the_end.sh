#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1, CPU: where the last offset of `grouped_mm` is below the number of
# rows, the rows past it are uninitialised memory: in the output, and in the
# gradient of the input, whatever gradient comes back for them. A sum over the
# output, or the gradient that flows on, is wrong or NaN.
#
# Seen: where torch fills uninitialised memory with NaN, NaN in the two rows past
# the end of the output and of the input's gradient; none in the rows before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import torch
import torch.nn.functional as F

assert torch.__version__.startswith('2.14.1'), torch.__version__
torch.manual_seed(0)
ends = torch.tensor([3, 8], dtype=torch.int32)
x = torch.randn(10, 64, requires_grad=True)
weight = torch.randn(2, 64, 64)
grad = torch.zeros(10, 64)

# torch then fills memory that it does not initialise with NaN
torch.use_deterministic_algorithms(True)
y = F.grouped_mm(x, weight, offs=ends)
grad_x, = torch.autograd.grad(y, x, grad)
seen = {}
for name, rows in dict(output=y, gradient=grad_x).items():
    finite = rows.isfinite().all(1)
    seen[name] = bool(finite[:8].all()), bool(finite[8:].all())
print('finite before and past the last end:', seen)
assert seen == dict(
    output=(True, False), gradient=(True, False)), 'it has changed'
EOF

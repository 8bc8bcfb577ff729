#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1, CPU: `grouped_mm` takes weights laid out like those of nn.Linear
# of any width in the forward pass, and refuses some in the backward pass: the
# gradient's rows must be a multiple of 16 bytes. Its output is padded (strides
# (64, 1) for 62 columns), the gradient that comes back is not.
#
# Seen: with 62 columns the forward pass works and the backward pass raises
# RuntimeError; with 64 both work.
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


def run(width):
    x = torch.randn(8, 32, requires_grad=True)
    weight = torch.randn(2, width, 32, requires_grad=True)
    y = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    expected = torch.cat([x[:3] @ weight[0].t(), x[3:] @ weight[1].t()])
    torch.testing.assert_close(y, expected)
    try:
        y.backward(torch.randn(8, width))
        return y.stride(), 'works'
    except RuntimeError as error:
        return y.stride(), f'RuntimeError: {error}'


seen = {width: run(width) for width in (62, 64)}
print('strides of the output, and the backward pass:', seen)
assert seen == {
    62: ((64, 1), 'RuntimeError: strides should be multiple of 16 bytes'),
    64: ((64, 1), 'works')
}, 'it has changed'
EOF

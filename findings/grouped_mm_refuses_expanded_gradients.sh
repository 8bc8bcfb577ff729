#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1, CPU: the backward pass of `grouped_mm` refuses a gradient that is
# expanded, which is what `.sum().backward()` sends; `mm` takes it.
#
# Seen: RuntimeError for `grouped_mm(...).sum().backward()`; the same product
# with a gradient that is written out works, as do both with `mm`.
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
x = torch.randn(8, 32, requires_grad=True)
weight = torch.randn(2, 32, 64, requires_grad=True)
one = torch.ones(())


def run(product, grad):
    try:
        product().backward(grad)
        return 'works'
    except RuntimeError as error:
        return f'RuntimeError: {str(error)[:23]}'


products = dict(
    mm=lambda: x @ weight[0], grouped_mm=lambda: F.grouped_mm(
        x, weight, offs=ends))
grads = dict(expanded=one.expand(8, 64), written_out=torch.ones(8, 64))
seen = {(name, kind): run(product, grad)
        for name, product in products.items()
        for kind, grad in grads.items()}
seen['grouped_mm', 'sum'] = run(lambda: products['grouped_mm']().sum(), None)
print(seen)
refused = 'RuntimeError: Invalid strides/sizes, '
assert {key for key, value in seen.items() if value == refused} == {
    ('grouped_mm', 'expanded'), ('grouped_mm', 'sum')
}, 'it has changed'
EOF

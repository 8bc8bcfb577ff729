#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1, CPU: `grouped_mm` multiplies fp32 and fp16 tensors, but cannot be
# traced with them: its meta kernel, by which torch.compile and torch.export
# find shapes, refuses what the CPU kernel takes. bf16 can be traced.
#
# Seen: eager works in all three; compiled and exported raise for fp32 and fp16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import logging

import torch
import torch.nn.functional as F
from torch import nn

assert torch.__version__.startswith('2.14.1'), torch.__version__
logging.disable(logging.ERROR)


class Product(nn.Module):

    def forward(self, x, weight, ends):
        return F.grouped_mm(x, weight, offs=ends)


def run(dtype):
    args = (torch.ones(8, 32, dtype=dtype), torch.ones(2, 32, 64, dtype=dtype),
            torch.tensor([3, 8], dtype=torch.int32))
    ways = dict(
        eager=lambda: Product()(*args),
        compiled=lambda: torch.compile(
            Product(), backend='eager', fullgraph=True)(*args),
        exported=lambda: torch.export.export(Product(), args))
    seen = {}
    for name, way in ways.items():
        torch._dynamo.reset()
        try:
            way()
            seen[name] = 'works'
        except RuntimeError as error:
            lines = str(error).splitlines()
            why = [line for line in lines if 'mat_a' in line or 'cuBLAS' in line]
            seen[name] = (why or lines)[0][-80:]
    return seen


seen = {dtype: run(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)}
for dtype, results in seen.items():
    print(dtype, results)
for dtype, results in seen.items():
    works = [name for name, result in results.items() if result == 'works']
    assert works == (list(results) if dtype == torch.bfloat16 else
                     ['eager']), 'it has changed'
EOF

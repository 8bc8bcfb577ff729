#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1: torch.compile takes the object that a method marked with
# `torch.compiler.assume_constant_result` returns for a constant. Its attributes
# can be read; a call of one of its methods ends in an internal error.
#
# Seen: attribute: works. Method: InternalTorchDynamoError, NotImplementedError,
# with no text that names the cause.
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


class Settings:

    def __init__(self):
        self.factor = 2.

    def get(self):
        return self.factor


class Net(nn.Module):

    def __init__(self, read):
        super().__init__()
        self.read = read

    @torch.compiler.assume_constant_result
    def find(self):
        return Settings()

    def forward(self, x):
        if self.read == 'attribute':
            return x * self.find().factor
        return x * self.find().get()


def run(read):
    torch._dynamo.reset()
    net = torch.compile(Net(read), backend='eager', fullgraph=True)
    try:
        return net(torch.ones(2)).tolist()
    except Exception as error:
        return f'{type(error).__name__}: {str(error).split()[0]}'


seen = {read: run(read) for read in ('attribute', 'method')}
print(seen)
assert seen == dict(
    attribute=[2., 2.],
    method='InternalTorchDynamoError: NotImplementedError:'), 'it has changed'
EOF

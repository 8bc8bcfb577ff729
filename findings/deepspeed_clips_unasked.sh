#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# deepspeed 0.19.8, torch 2.14.1: a config that says nothing of gradient clipping
# clips to a norm of 1. Until 0.19.2 it clipped nothing. Runs whose gradients are
# larger learn more slowly, without a line in the log.
#
# Seen: a gradient of norm 20 moves the weights by as much as one of norm 1; with
# `gradient_clipping=0` by 20 times as much.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    setuptools wheel
DS_BUILD_OPS=0 "$folder/venv/bin/python" -m pip install -q \
    --no-build-isolation deepspeed==0.19.8
cd "$folder"
# it compiles an operator, which is not to stay
DS_ACCELERATOR=cpu TORCH_EXTENSIONS_DIR="$folder/compiled" \
    RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_SIZE=1 \
    MASTER_ADDR=localhost MASTER_PORT=29517 PATH="$folder/venv/bin:$PATH" \
    "$folder/venv/bin/python" -W ignore - <<'PY' | grep -v INFO
import deepspeed
import torch

assert deepspeed.__version__ == '0.19.8', deepspeed.__version__


def moved(**config):
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.),
        config=dict(train_micro_batch_size_per_gpu=1, **config))
    engine.backward(engine(torch.full((1, 4), 10.)).sum())
    engine.step()
    return model.weight.norm().item()


seen = moved(), moved(gradient_clipping=0.)
print('moved by, as it is and with gradient_clipping=0:', seen)
assert abs(seen[0] - 1) < .01 and abs(seen[1] - 20) < .01, 'it has changed'
PY

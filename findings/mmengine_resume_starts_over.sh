#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12: `Runner(resume=True)` finds the newest checkpoint by the
# file `last_checkpoint` alone. Where that is absent (a copied work dir, say), the
# run starts over at epoch 0 beside epoch_1.pth and epoch_2.pth, logs "Auto resumed
# from the latest checkpoint None." and overwrites them.
#
# Seen: starts at epoch 2 with the file, at epoch 0 without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 opencv-python-headless==4.12.0.88
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import os
import tempfile

import torch
from mmengine import __version__
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

assert __version__ == '0.10.12', __version__


class Toy(BaseModel):

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, mode):
        return dict(loss=(self.weight * x).sum())


def first_epoch(folder, max_epochs, resume):
    data = [dict(x=torch.ones(1))] * 4
    runner = Runner(
        Toy(), folder, train_dataloader=torch.utils.data.DataLoader(data),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=.1)),
        train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
        resume=resume, log_level='ERROR',
        experiment_name=f'{max_epochs}{len(os.listdir(folder))}')
    found = []
    runner.train_loop.run_epoch, run = (
        lambda: (found.append(runner.epoch), run()),
        runner.train_loop.run_epoch)
    runner.train()
    return found[0]


seen = {}
for keep in (True, False):
    with tempfile.TemporaryDirectory() as folder:
        first_epoch(folder, 2, False)
        if not keep:
            os.remove(f'{folder}/last_checkpoint')
        seen[keep] = first_epoch(folder, 3, True)
print('with and without last_checkpoint, resuming starts at epoch', seen)
assert seen == {True: 2, False: 0}, 'it has changed'
EOF

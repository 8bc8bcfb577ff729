#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12: `BaseDataElement.clone()` says "deep copy", and shares
# what the element holds: a box that is written in the clone of a data sample is
# written in the sample, too.
#
# Seen: the original's boxes change with the clone's; those of copy.deepcopy
# do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 "opencv-python-headless==4.12.0.88" setuptools==80.9.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
from copy import deepcopy

import torch
from mmengine import __version__
from mmengine.structures import BaseDataElement, InstanceData

assert __version__ == '0.10.12', __version__


def changed(copy_of) -> bool:
    sample = BaseDataElement(gt_instances=InstanceData(bboxes=torch.zeros(1, 4)))
    copy_of(sample).gt_instances.bboxes = torch.ones(1, 4)
    return bool(sample.gt_instances.bboxes.any())


seen = dict(clone=changed(BaseDataElement.clone), deepcopy=changed(deepcopy))
print('whether writing to a copy changes the original:', seen)
assert seen == dict(clone=True, deepcopy=False), 'it has changed'
EOF

#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# vector-quantize-pytorch 1.32.0: a codebook that is set (`vq.codebook = codes`) is
# gone after the next training step of its moving averages: the setter leaves those
# as they were, and the step computes the codes anew from them.
#
# Seen: codes set to four points; a step on exactly these points, each of them
# used, moves the codes by the size of the points.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    vector-quantize-pytorch==1.32.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
from importlib.metadata import version

import torch
from vector_quantize_pytorch import VectorQuantize

assert version('vector-quantize-pytorch') == '1.32.0'
torch.manual_seed(0)
vq = VectorQuantize(dim=2, codebook_size=4, decay=0.8, rotation_trick=False)
wanted = torch.tensor([[10., 0.], [0., 10.], [-10., 0.], [0., -10.]])
vq.codebook = wanted.clone()
kept = torch.equal(vq.codebook, wanted)
# every code is used, at exactly its own place: nothing should move
vq.train()
vq(wanted[None])
moved = (vq.codebook - wanted).abs().max().item()
print(f'the codes are set: {kept}; after a step on the codes themselves they '
      f'have moved by {moved:.1f}')
assert kept and moved > 1, 'it has changed'
EOF

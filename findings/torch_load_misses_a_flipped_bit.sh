#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# torch 2.14.1: a checkpoint is a zip file with a CRC-32 of every entry, but
# `torch.load` does not compare it. With one bit of a tensor flipped it returns
# another value and says nothing; Python's zipfile names the damaged entry. With
# one bit of the pickle flipped, `weights_only=True` raises UnpicklingError, the
# documented error, or any of several others.
#
# Seen: 0.0 is read as 2.0; IndexError, KeyError, TypeError, UnicodeDecodeError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import io
import struct
import warnings
import zipfile

import torch

assert torch.__version__.startswith('2.14.1'), torch.__version__
warnings.simplefilter('ignore')
file = io.BytesIO()
torch.save(dict(state_dict=dict(w=torch.zeros(4)), meta=dict(epoch=3)), file)
good = file.getvalue()
entries = {i.filename: i for i in zipfile.ZipFile(file).infolist()}


def flipped(entry, byte, bit):
    header = entries[entry].header_offset
    lengths = struct.unpack('<HH', good[header + 26:header + 30])
    bad = bytearray(good)
    bad[header + 30 + sum(lengths) + byte] ^= 1 << bit
    return io.BytesIO(bytes(bad))


bad = flipped('archive/data/0', 3, 6)
value = torch.load(bad, weights_only=True)['state_dict']['w'].tolist()
print('values:', value, '- zipfile:', zipfile.ZipFile(bad).testzip())
assert value == [2., 0., 0., 0.], 'it has changed'

kinds = []
for byte, bit in ((0, 1), (0, 0), (5, 6), (65, 0), (7, 7)):
    try:
        torch.load(flipped('archive/data.pkl', byte, bit), weights_only=True)
    except Exception as error:
        kinds.append(type(error).__name__)
print('errors:', kinds)
assert kinds == ['UnpicklingError', 'IndexError', 'KeyError', 'TypeError',
                 'UnicodeDecodeError'], 'it has changed'
EOF

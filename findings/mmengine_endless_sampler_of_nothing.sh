#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12: `InfiniteSampler` of a data set of no image looks for
# its first index for ever, without a message; `DefaultSampler` gives none.
#
# Seen: the first index has not come after three seconds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 numpy==2.2.6 \
    onedl-mmengine==0.10.12 "opencv-python-headless==4.12.0.88" "setuptools<81"
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import signal

from mmengine import __version__
from mmengine.dataset import DefaultSampler, InfiniteSampler

assert __version__ == '0.10.12', __version__


def give_up(*_) -> None:
    raise TimeoutError


def ends(sampler) -> bool:
    signal.alarm(3)
    try:
        next(iter(sampler), None)
        return True
    except TimeoutError:
        return False
    finally:
        signal.alarm(0)


signal.signal(signal.SIGALRM, give_up)
seen = {kind.__name__: ends(kind([]))
        for kind in (InfiniteSampler, DefaultSampler)}
print('whether a sampler of an empty data set comes back:', seen)
assert seen == dict(InfiniteSampler=False, DefaultSampler=True), \
    'it has changed'
EOF

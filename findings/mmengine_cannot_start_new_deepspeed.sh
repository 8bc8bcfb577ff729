#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12 with deepspeed 0.19.8: DeepSpeedStrategy registers the
# 1-bit optimizers of DeepSpeed, whose module is gone since 0.19.7, so that it
# cannot be built. It registers them anew with every strategy, too, and the
# registry refuses what it has.
#
# Seen: ModuleNotFoundError for `deepspeed.runtime.fp16.onebit`; with that import
# out of the way, one strategy can be built in a process, and a second one cannot.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision \
    numpy==2.2.6 setuptools wheel onedl-mmengine==0.10.12 \
    opencv-python-headless==4.12.0.88
DS_BUILD_OPS=0 "$folder/venv/bin/python" -m pip install -q \
    --no-build-isolation deepspeed==0.19.8
cd "$folder"
DS_ACCELERATOR=cpu "$folder/venv/bin/python" -W ignore - <<'PY' | grep -v INFO
import sys
import types

import deepspeed
import mmengine
from mmengine._strategy import DeepSpeedStrategy

assert mmengine.__version__ == '0.10.12', mmengine.__version__
assert deepspeed.__version__ == '0.19.8', deepspeed.__version__


def build():
    try:
        DeepSpeedStrategy(env_kwargs=dict(launcher='none'))
        return 'works'
    except (ModuleNotFoundError, KeyError) as error:
        return f'{type(error).__name__}: {error}'


seen = [build()]
module = types.ModuleType('deepspeed.runtime.fp16.onebit')
for name in ('OnebitAdam', 'OnebitLamb', 'ZeroOneAdam'):
    setattr(module, name, type(name, (), {}))
sys.modules[module.__name__] = module
seen += [build(), build()]
print(*seen, sep='\n')
assert seen[0].endswith("'deepspeed.runtime.fp16.onebit'"), 'it has changed'
assert seen[1] == 'works' and 'already registered' in seen[2], \
    'it has changed'
PY

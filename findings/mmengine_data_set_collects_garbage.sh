#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# onedl-mmengine 0.10.12: a data set that is built (`BaseDataset`, with
# `serialize_data=True` as by default) searches the whole process for garbage,
# however small it is. The search goes through every class and function that was
# imported. A suite of tests that builds many small data sets spends most of its
# time there: 46 tests of ours took 64 s of CPU, and 31 s where the search had
# nothing to look through.
#
# Seen: one search of all generations for each of five data sets of one sample;
# without it they take less than a fifth of the time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.14.1 torchvision \
    numpy==2.2.6 setuptools onedl-mmengine==0.10.12 \
    opencv-python-headless==4.12.0.88
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PY'
import gc
import time
from types import SimpleNamespace

import mmengine
from mmengine.dataset import BaseDataset, base_dataset
from mmengine.runner import Runner  # noqa: F401, what a run imports

assert mmengine.__version__ == '0.10.12', mmengine.__version__


class One(BaseDataset):

    def load_data_list(self):
        return [dict(x=1)]


searches = []
gc.callbacks.append(
    lambda phase, info: phase == 'start' and info['generation'] == 2 and
    searches.append(info))


def seconds():
    start = time.perf_counter()
    for _ in range(5):
        One()
    return time.perf_counter() - start


seconds()
searches.clear()
plain = seconds()
number = len(searches)
base_dataset.gc = SimpleNamespace(collect=int)
without = seconds()
print(f'mmengine {mmengine.__version__}: {number} searches for 5 data sets, '
      f'{1000 * plain / 5:.0f} ms each, and {1000 * without / 5:.1f} ms '
      'without')
assert number == 5 and without < plain / 5, 'it has changed'
PY

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Where a result comes from: commit, date and machine."""

import os
import platform
import subprocess
from datetime import date
from pathlib import Path

import torch

import vim_mm

#: The checkout, if it is one, or where the package is installed.
_ROOT = Path(vim_mm.__file__).resolve().parents[1]


def origin() -> str:
    """Commit, date and machine of what this process computes.

    It asks the GPU for its name: call it where models run.
    """
    return f'{commit()}, {date.today().isoformat()}, {machine()}'


def commit() -> str:
    """The checkout's commit, marked if files differ; else the version."""
    name = f'vim_mm {vim_mm.__version__}'
    if not (_ROOT / '.git').exists():  # an installed package
        return name
    command = ['git', '-C', str(_ROOT), 'describe', '--always', '--dirty']
    command += ['--exclude=*']
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return name
    return f'{name}, commit {done.stdout.strip()}'


def machine() -> str:
    """The GPU, or the number and kind of the CPU cores in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(
        os, 'sched_getaffinity') else os.cpu_count()
    return f'{cores} CPU cores ({platform.machine()})'


def docs_folder() -> Path:
    """The folder of the documentation; it is there in a checkout."""
    return _ROOT / 'docs'

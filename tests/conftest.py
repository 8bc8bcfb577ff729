# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Markers of the test suite, and the package prepared before any import."""

import gc
import os
from typing import Iterator

import pytest
import torch
from _speed import lighten
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed

import vim_mm  # noqa: F401
from vim_mm.engine import head_scores

# its config builds for any task, once one is named
os.environ.setdefault('VTAB_TASK', 'caltech101')


def pytest_configure(config: pytest.Config) -> None:
    # thousands of files are flushed, which a busy disk may make slow, and only
    # a power cut would show it; tests that watch it bring their own
    os.fsync = lambda file: None
    # of runs that end in a cycle of references the loaders' workers hear
    # nothing, so the garbage collector waits so long for each of them
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    lighten()
    # tiny heads on tiny pictures are tried often, and need not be good
    head_scores.STEPS = 12
    config.addinivalue_line('markers', 'gpu: needs a CUDA device')


def pytest_collection_finish() -> None:
    # a search for garbage need not look through all libraries each time
    gc.collect()
    gc.freeze()


def kept_scope() -> Iterator[None]:
    """A runner sets the default scope of the process: undo it."""
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


# what a test sets, and what a fixture of a file sets for its tests
default_scope = pytest.fixture(autouse=True)(kept_scope)
scope_of_file = pytest.fixture(autouse=True, scope='module')(kept_scope)


@pytest.fixture(autouse=True, scope='module')
def module_seed() -> None:
    """What fixtures of a file draw depends on no other file."""
    set_random_seed(0)


@pytest.fixture(autouse=True)
def seed(module_seed: None) -> None:
    """What a test draws depends on no other test."""
    set_random_seed(1)

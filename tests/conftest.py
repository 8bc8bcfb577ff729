# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Markers of the test suite, and the package prepared before any import."""

from typing import Iterator

import pytest
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed

import vim_mm  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line('markers', 'slow: takes more than half a minute')
    config.addinivalue_line('markers', 'gpu: needs a CUDA device')


@pytest.fixture(autouse=True)
def default_scope() -> Iterator[None]:
    """A runner sets the default scope of the process: undo it."""
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(autouse=True, scope='module')
def module_seed() -> None:
    """What fixtures of a file draw depends on no other file."""
    set_random_seed(0)


@pytest.fixture(autouse=True)
def seed(module_seed: None) -> None:
    """What a test draws depends on no other test."""
    set_random_seed(1)

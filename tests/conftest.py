# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Markers of the test suite, and the package prepared before any import."""

from typing import Iterator

import pytest
from mmengine.registry import DefaultScope

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

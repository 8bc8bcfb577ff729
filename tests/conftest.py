# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Markers of the test suite, and the package prepared before any import."""

import pytest

import vim_mm  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line('markers', 'slow: takes more than half a minute')
    config.addinivalue_line('markers', 'gpu: needs a CUDA device')

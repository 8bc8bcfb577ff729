# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Loops, hooks and what a run looks at before it works."""

# it imports parts of this package when it is imported itself, so it is first,
# whichever of them comes next
import mmengine.runner  # noqa: F401

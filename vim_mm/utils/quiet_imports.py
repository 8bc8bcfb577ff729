# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Imports mmpretrain's models first, which print a line when they lack OneDL.

The line goes to stderr, for stdout holds the answers of tools.
"""

import contextlib
import sys

with contextlib.redirect_stdout(sys.stderr):
    import mmpretrain.models  # noqa: F401

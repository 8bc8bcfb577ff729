# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The demo: its steps and its data sets."""

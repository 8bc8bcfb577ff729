# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The one place that states the version; ``setup.py`` reads it from here."""

__version__ = '0.1.0'

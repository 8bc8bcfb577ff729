# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Features of a frozen backbone: cached, stored on disk, or as rows."""

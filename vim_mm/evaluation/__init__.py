# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How good features are: published scores and our own, on plain tensors."""

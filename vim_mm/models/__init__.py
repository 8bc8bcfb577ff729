# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from . import adapters, backbones, fusion, heads, necks  # noqa: F401

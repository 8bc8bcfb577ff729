# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What libraries do for each run, and thousands of tiny ones do without."""

import ast
from types import SimpleNamespace

from mmengine.dataset import base_dataset
from yapf.yapflib import yapf_api

#: As users have it, for tests of what they read.
format_code = yapf_api.FormatCode


def lighten() -> None:
    """Build data sets without a search for garbage, and format no config.

    mmengine searches the whole process for garbage with each data set, and
    formats the config of each run. ``make demo`` does both as users do.
    """
    base_dataset.gc = SimpleNamespace(collect=int)
    yapf_api.FormatCode = _parsed


def _parsed(text: str, **_: str) -> tuple:
    return ast.unparse(ast.parse(text)), True

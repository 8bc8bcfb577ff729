# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What libraries do for each run, which thousands of tiny runs can do without.

It took more than half of the time of the suite.
"""

import ast
from types import SimpleNamespace

from mmengine.dataset import base_dataset
from yapf.yapflib import yapf_api


def lighten() -> None:
    """Build data sets without a search for garbage, write configs as they come.

    mmengine searches the whole process for garbage with each data set, and
    formats the config of each run. ``make demo`` does both as users do.
    """
    base_dataset.gc = SimpleNamespace(collect=int)
    yapf_api.FormatCode = _parsed


def _parsed(text: str, **_: str) -> tuple:
    return ast.unparse(ast.parse(text)), True

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What libraries do for each run, which thousands of tiny runs can do without.

It took more than half of the time of the suite.
"""

import ast
import gc

from yapf.yapflib import yapf_api


def settle() -> None:
    """Leave what is there by now out of later searches for garbage.

    mmengine searches for each data set that is built. Classes and functions
    of libraries, most of what it looks through, stay anyway.
    """
    gc.collect()
    gc.freeze()


def skip_formatting() -> None:
    """mmengine writes the config of each run: leave its looks alone.

    ``make demo`` writes them as users do.
    """
    yapf_api.FormatCode = _parsed


def _parsed(text: str, **_: str) -> tuple:
    return ast.unparse(ast.parse(text)), True

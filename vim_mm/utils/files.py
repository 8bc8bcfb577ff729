# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write a text file so that readers see the old or the new, never half.

    Args:
        path (Path): The file; its folder must exist.
        text (str): Its content.
    """
    fresh = path.with_name(f'.{path.name}.{os.getpid()}')
    fresh.write_text(text, encoding='utf-8')
    os.replace(fresh, path)

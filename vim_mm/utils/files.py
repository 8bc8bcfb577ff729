# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os
from pathlib import Path
from typing import Union


def write_atomic(path: Path, content: Union[str, bytes]) -> None:
    """Write a file so that readers see the old or the new, never half.

    Args:
        path (Path): The file; its folder must exist.
        content (str | bytes): Its content; text is written as UTF-8.
    """
    fresh = path.with_name(f'.{path.name}.{os.getpid()}')
    if isinstance(content, str):
        content = content.encode('utf-8')
    try:
        fresh.write_bytes(content)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)

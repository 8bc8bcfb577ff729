# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Type, Union


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


@contextmanager
def new_folder(dst: Path, error: Type[ValueError]) -> Iterator[Path]:
    """A hidden neighbour of ``dst``, moved into its place when all went well.

    Args:
        dst (Path): The folder to make; it may exist if it is empty.
        error (type): What is raised if it is not.
    """
    dst = dst.resolve()  # a link to an empty folder stays one
    if dst.exists() and (not dst.is_dir() or any(dst.iterdir())):
        raise error(f"'{dst}' is there already: name a new folder")
    dst.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f'.{dst.name}.', dir=dst.parent))
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp lets nobody else in
        os.replace(draft, dst)
    finally:
        shutil.rmtree(draft, ignore_errors=True)

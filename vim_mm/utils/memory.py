# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""How much memory this process may still take."""

from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Union


class _Files(NamedTuple):
    """Where a version of control groups keeps its numbers."""
    mount: str
    limit: str
    used: str
    cache: str


_V1 = _Files('sys/fs/cgroup/memory', 'memory.limit_in_bytes',
             'memory.usage_in_bytes', 'total_inactive_file')
_V2 = _Files('sys/fs/cgroup', 'memory.max', 'memory.current', 'inactive_file')


def free_memory(root: Union[str, Path] = '/') -> Optional[int]:
    """Bytes that this process may still take, of the machine's memory.

    Containers and batch systems kill what takes more than their own limit,
    so their control groups count as well.

    Args:
        root (str | Path): Where the system's files are. Defaults to '/'.

    Returns:
        int | None: None where the system does not say (not Linux).
    """
    found = [*_of_machine(Path(root)), *_of_groups(Path(root))]
    return min(found, default=None)


def readable(size: float) -> str:
    """A number of bytes for a sentence, such as '5.5 TB'."""
    units = ('bytes', 'kB', 'MB', 'GB', 'TB')
    power = 0
    while size >= 1000 and power < len(units) - 1:
        size, power = size / 1000, power + 1
    return f'{size:.{1 if power else 0}f} {units[power]}'


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / 'proc/meminfo'):
        if line.startswith('MemAvailable:'):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What is left in each control group around this process."""
    for line in _lines(root / 'proc/self/cgroup'):
        _, controllers, path = line.split(':', 2)
        if controllers and 'memory' not in controllers.split(','):
            continue
        files = _V1 if controllers else _V2
        mount = root / files.mount
        group = mount / path.strip('/')
        # in a container the path may be that of the host
        for folder in (group, *group.parents):
            if mount in (folder, *folder.parents):
                yield from _left(folder, files)


def _left(folder: Path, files: _Files) -> Iterator[int]:
    limit, used = (next(_lines(folder / name), '')
                   for name in (files.limit, files.used))
    if not limit.isdigit() or not used.isdigit():  # 'max', or no such group
        return
    # files that were read can be dropped any time
    dropped = sum(
        int(line.split()[1]) for line in _lines(folder / 'memory.stat')
        if line.startswith(f'{files.cache} '))
    yield max(0, int(limit) - max(0, int(used) - dropped))


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text().splitlines()
    except OSError:
        return

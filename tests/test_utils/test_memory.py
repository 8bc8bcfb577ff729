# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Free memory is that of the machine or of the tightest control group."""

from pathlib import Path
from typing import Dict, Optional

import pytest

from vim_mm.utils.memory import free_memory, readable

MACHINE = {'proc/meminfo': 'MemTotal: 9000 kB\nMemAvailable:  8000 kB\n'}
V2 = 'sys/fs/cgroup'
V1 = 'sys/fs/cgroup/memory'


def group(folder: str, limit: object, used: int, cache: int = 0,
          first: bool = False) -> Dict[str, str]:
    names = ('memory.limit_in_bytes', 'memory.usage_in_bytes',
             'total_inactive_file') if first else (
                 'memory.max', 'memory.current', 'inactive_file')
    return {
        f'{folder}/{names[0]}': f'{limit}\n',
        f'{folder}/{names[1]}': f'{used}\n',
        f'{folder}/memory.stat': f'anon 5\n{names[2]} {cache}\n',
    }


@pytest.mark.parametrize(('files', 'expected'), [
    ({}, None),  # another system
    (MACHINE, 8000 * 1024),
    ({**MACHINE, 'proc/self/cgroup': '0::/\n', **group(V2, 'max', 5)},
     8000 * 1024),
    ({**MACHINE, 'proc/self/cgroup': '0::/\n', **group(V2, 1000, 400)}, 600),
    # what was read from disk can be dropped
    ({**MACHINE, 'proc/self/cgroup': '0::/a/b\n',
      **group(f'{V2}/a/b', 1000, 900, 500)}, 600),
    # the group around it is tighter
    ({**MACHINE, 'proc/self/cgroup': '0::/a/b\n',
      **group(f'{V2}/a/b', 1000, 0), **group(f'{V2}/a', 800, 100)}, 700),
    # inside of a container the path is that of the host
    ({**MACHINE, 'proc/self/cgroup': '0::/docker/1f\n',
      **group(V2, 1000, 100)}, 900),
    ({**MACHINE,
      'proc/self/cgroup': '3:cpu:/\n2:memory:/slurm/job_1\n0::/x\n',
      **group(f'{V1}/slurm/job_1', 1000, 300, first=True)}, 700),
    # over its limit
    ({**MACHINE, 'proc/self/cgroup': '0::/\n', **group(V2, 100, 900)}, 0),
])
def test_of_a_system(files: Dict[str, str], expected: Optional[int],
                     tmp_path: Path) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert free_memory(tmp_path) == expected


def test_of_this_one() -> None:
    free = free_memory()
    assert free is None or free > 1 << 20


@pytest.mark.parametrize(('size', 'said'), [
    (0, '0 bytes'), (999, '999 bytes'), (1500, '1.5 kB'),
    (5.5e12, '5.5 TB'), (2e15, '2000.0 TB')])
def test_readable(size: float, said: str) -> None:
    assert readable(size) == said

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A file of finished runs, of any evidence: what is there is not run again."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional, Sequence, Tuple

from evidence_rows import add, read


class RunLog:
    """The file ``runs.jsonl`` of a folder, a line for each finished run.

    Args:
        work_dir (Path): The folder, there or not yet.
        only (Sequence[str], optional): Names of the runs that are wanted, or
            what they begin with: ``student/``. All when None.
    """

    def __init__(self,
                 work_dir: Path,
                 only: Optional[Sequence[str]] = None) -> None:
        work_dir.mkdir(parents=True, exist_ok=True)
        self.path = work_dir / 'runs.jsonl'
        self.only = only

    def rows(self, seed: int) -> Dict[str, Dict[str, Any]]:
        """What has been run with a seed, by name.

        Raises:
            ValueError: If a line of the file is damaged.
        """
        if not self.path.exists():
            return {}
        return read(self.path).get(seed, {})

    def run(
            self, seed: int,
            plan: Iterable[Tuple[str, Callable[[], Dict[str, Any]]]]) -> None:
        """Run what is wanted and has not been run.

        Args:
            seed (int): Of the runs.
            plan (Iterable[tuple[str, Callable]]): Names of runs, in their
                order, and what each does.
        """
        version = commit()
        for name, run in plan:
            if not self._wanted(name) or name in self.rows(seed):
                continue
            start = time.process_time()
            row = dict(seed=seed, run=name, commit=version, **run())
            row['cpu_seconds'] = round(time.process_time() - start)
            add(self.path, row)
            print(json.dumps(row), flush=True)

    def _wanted(self, name: str) -> bool:
        names = {name, name.split('/')[0] + '/'}
        return self.only is None or bool(names & set(self.only))


def commit() -> str:
    """The version of the code that runs."""
    return subprocess.run(['git', 'rev-parse', '--short=12', 'HEAD'],
                          cwd=Path(__file__).parent,
                          capture_output=True,
                          text=True).stdout.strip()

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Rows: runs that are interrupted and resumed, and wrong uses.

These are tests of the suite, which count as cases one by one.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from functools import partial
from pathlib import Path
from typing import Sequence

from reliability_cases import Campaign, Tally

ROOT = Path(__file__).resolve().parents[1]
RESUMES = ('test_engine/test_resume.py', 'test_engine/test_saving.py',
           'test_engine/test_exact.py', 'test_engine/test_stopping.py',
           'test_utils/test_checksum.py')
WRONG_USES = ('test_wrong_uses.py', 'test_models/test_mistakes.py',
              'test_utils/test_data.py', 'test_engine/test_model_parts.py')


def tests(files: Sequence[str], tally: Tally, root: Path, share: float,
          seed: int) -> None:
    """Run tests; each is a case. A small share takes the first file."""
    report = root / 'report.xml'
    paths = [str(ROOT / 'tests' / file) for file in files]
    paths = list(filter(os.path.isfile, paths))
    paths = paths[:max(1, round(share * len(paths)))]
    done = subprocess.run(
        [
            sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
            f'--junitxml={report}', *paths
        ],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        stdout=subprocess.DEVNULL)
    if not report.exists():
        tally.check(f'pytest ended with {done.returncode}', False)
        return
    for case in xml.parse(report).getroot().iter('testcase'):
        if case.find('skipped') is not None:
            continue
        bad = case.find('failure')
        bad = case.find('error') if bad is None else bad
        said = '' if bad is None else (bad.get('message') or '')[:200]
        tally.check(f'{case.get("name")}: {said}', bad is None)


CAMPAIGNS = [
    Campaign('runs are killed and resumed', partial(tests, RESUMES)),
    Campaign('wrong uses', partial(tests, WRONG_USES))
]

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Are the modules in the zoos of a user whole?"""

import time
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Dict, List, Optional, Sequence, Tuple

from vim_mm.utils.checks import BROKEN, NOTE, OK, Check
from vim_mm.utils.messages import LINES, printable
from .card import ZooError
from .zoo_reader import NoModule, ZooReader

#: Where the guides and demos put modules.
ZOOS = ('work_dirs/zoo', 'work_dirs/demo/zoo', 'work_dirs/zoo-demo/zoo')
#: After which no more modules are looked at.
SECONDS = 20.


def check_zoos(roots: Optional[Sequence[str]] = None) -> List[Check]:
    """Whether modules are whole: their number, and a line for each bad one.

    Args:
        roots (Sequence[str], optional): The zoos. Defaults to those of
            :data:`ZOOS` that are there.
    """
    if roots is None:
        roots = [root for root in ZOOS if Path(root).is_dir()]
    until, checks = time.monotonic() + SECONDS, []
    for root in roots:
        checks += _check_zoo(str(root), until)
    return checks


def _check_zoo(root: str, until: float) -> List[Check]:
    topic, shown = 'zoos', printable(root)
    try:
        good, bad, left = _look(root, until)
    except ZooError as error:
        return [Check(topic, shown, BROKEN, str(error))]
    number = f'{good:,} modules are whole'
    if bad:
        number += f', {len(bad):,} are not'
    checks = [Check(topic, shown, BROKEN if bad else OK, number)]
    for name, (said, mend) in islice(bad.items(), LINES):
        checks.append(Check(topic, f'{shown}: {name}', BROKEN, said, mend))
    verify = f'vim-mm zoo verify {quote(shown)}'
    if len(bad) > LINES:
        checks.append(
            Check(topic, shown, BROKEN, f'{len(bad) - LINES:,} more are not '
                  'whole', verify))
    if left:
        checks.append(
            Check(topic, shown, NOTE, f'{left:,} more were not looked at in '
                  f'{SECONDS:.0f} s', verify))
    return checks


def _look(root: str,
          until: float) -> Tuple[int, Dict[str, Tuple[str, str]], int]:
    """How many modules are whole, which are not, and how many are left."""
    zoo, good, left = ZooReader(root), 0, 0
    names, bad = zoo.names(), {}
    for place, name in enumerate(names):
        if time.monotonic() > until:
            left = len(names) - place
            break
        try:
            problems = zoo.verify(name)
        except NoModule:
            continue  # it was removed meanwhile
        except ZooError as error:
            problems = [str(error)]
        good += not problems
        if problems:
            bad[name] = ' '.join(problems), (
                f'vim-mm zoo remove {quote(printable(root))} {quote(name)}')
    bad.update((name, (said, '')) for name, said in zoo.misnamed().items())
    return good, bad, left

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What checks of an installation find, and how it is counted."""

from dataclasses import dataclass
from typing import Dict, List, Tuple

OK, NOTE, BROKEN = 'ok', 'note', 'broken'


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Args:
        topic: Heading it belongs under.
        name: What was checked.
        state: ``'ok'``, ``'note'`` (works without, or limited) or
            ``'broken'`` (vim_mm cannot do its work).
        detail: What was found.
        mend: The line that fixes a problem; empty when there is none.
    """
    topic: str
    name: str
    state: str
    detail: str
    mend: str = ''


def by_topic(checks: List[Check]) -> Dict[str, List[Check]]:
    """Checks under their headings, both in order."""
    topics: Dict[str, List[Check]] = {}
    for check in checks:
        topics.setdefault(check.topic, []).append(check)
    return topics


def worst(checks: List[Check]) -> Tuple[int, int]:
    """How many checks are broken, and how many are notes."""
    states = [check.state for check in checks]
    return states.count(BROKEN), states.count(NOTE)

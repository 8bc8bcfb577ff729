# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What something was made of, and the licences that come with it."""

from typing import Any, Dict, Iterable, List, Mapping, Optional

from .card import ModuleCard

#: Between licences that hold together, as in SPDX expressions.
AND = ' AND '
#: Stands for the licence of a part that states none.
NOT_STATED = 'not stated'
#: What is said of each part.
FIELDS = ('name', 'task', 'dataset', 'licence', 'sha256')


def part_of(card: ModuleCard) -> List[Dict[str, Any]]:
    """A module as a part of another one, after the parts it was made of."""
    own = {key: getattr(card, key) for key in FIELDS}
    return [*card.parts, own]


def together(parts: Iterable[List[Dict[str, Any]]]) -> List[Dict[str, Any]]:
    """Lists of parts as one, each part once."""
    found: List[Dict[str, Any]] = []
    for part in (part for several in parts for part in several):
        if part not in found:
            found.append(part)
    return found


def all_licences(own: Optional[str],
                 parts: Iterable[Mapping[str, Any]]) -> Optional[str]:
    """All licences that hold for something made of parts.

    Args:
        own (str, optional): What is said of the whole.
        parts (Iterable[Mapping]): Its parts.

    Returns:
        str | None: Joined by :data:`AND`, each once; that of a part that
        states none is :data:`NOT_STATED`.
    """
    found = [own] if own else []
    found += [part.get('licence') or NOT_STATED for part in parts]
    single = [each.strip() for text in found for each in text.split(AND)]
    return AND.join(dict.fromkeys(single)) or None


def _own(fields: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: fields.get(key) for key in FIELDS[1:]}


def of_parts(fields: Mapping[str, Any],
             parts: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Fields of a card that also say what something was made of.

    Args:
        fields (Mapping): What is said of the whole.
        parts (list[dict]): Its parts.

    Returns:
        dict: The fields with the parts' licences, and with their data sets
        where the whole has none of its own. A part that is known by name
        alone was learned with the whole, and has its fields.
    """
    if not parts:
        return dict(fields)
    parts = [dict(_own(fields), **part) for part in parts]
    datasets = dict.fromkeys(
        part['dataset'] for part in parts if part.get('dataset'))
    return dict(
        fields,
        parts=parts,
        licence=all_licences(fields.get('licence'), parts),
        dataset=fields.get('dataset') or ' + '.join(datasets) or None)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Files of a user's own, and those that a program keeps for itself, may be
anything: they end in one sentence, or count as none."""

import json
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import pytest
from _hostile import (ESCAPE, IN_PLACE, JSON_FILES, ODD_VALUES, judged,
                      odd_json, put)
from _own_data import write_data

from vim_mm.apis.new_task.coco import read_coco
from vim_mm.apis.new_task.label_maps import read_classes
from vim_mm.demo.common import stored
from vim_mm.features.score_cache import ScoreCache
from vim_mm.utils.reading import read_kept

CLASSES = [['a', 'b'], dict(classes=['a', 'b']),
           [dict(name='a', color=[1, 2, 3]),
            dict(name='b', color=[3, 4, 5])]]


def problems(path: Path, read: Callable[[], Any],
             contents: Iterator[Tuple[str, bytes]]) -> dict:
    """What is wrong with how a reader ends, by content."""
    found = {}
    for what, content in contents:
        path.write_bytes(content)
        with judged(len(content)) as verdict:
            read()
        if verdict.problem:
            found[what] = verdict.problem
    return found


def in_place(path: Path, read: Callable[[], Any]) -> dict:
    """The same of what stands where a file should."""
    found = {}
    for what in IN_PLACE:
        put(path, what)
        with judged() as verdict:
            read()
        if verdict.problem or verdict.error is None:
            found[what] = verdict.problem or 'was read'
    return found


def dumped(contents: Iterator[Tuple[str, Any]]
           ) -> Iterator[Tuple[str, bytes]]:
    for what, content in contents:
        yield what, json.dumps(content).encode()


def odd_boxes(good: dict) -> Iterator[Tuple[str, Any]]:
    yield from odd_json(good)
    for name, value in dict(ODD_VALUES, inf=float('inf')).items():
        for place in range(4):
            bad = json.loads(json.dumps(good))
            bad['annotations'][0]['bbox'][place] = value
            del bad['annotations'][0]['area']
            yield f'bbox.{place}={name}', bad
        yield f'licence={name}', dict(good, licenses=[dict(name=value)])


def test_a_coco_json_may_be_anything(tmp_path: Path) -> None:
    write_data(tmp_path)
    path = tmp_path / 'cells/train.json'
    good = json.loads(path.read_text())

    def read() -> Any:
        return read_coco([path, tmp_path / 'cells/val.json'], [])

    assert read().classes == ['red', 'white']
    assert not problems(path, read, JSON_FILES.items())
    assert not problems(path, read, dumped(odd_boxes(good)))
    assert not in_place(path, read)


@pytest.mark.parametrize('good', CLASSES, ids=str)
def test_a_json_of_classes_may_be_anything(good: Any, tmp_path: Path) -> None:
    path = tmp_path / 'classes.json'

    def read() -> Any:
        return read_classes([str(path)], {0: path})

    path.write_text(json.dumps(good))
    assert read()[0] == ['a', 'b']
    assert not problems(path, read, JSON_FILES.items())
    assert not problems(path, read, dumped(odd_json(good)))
    assert not in_place(path, read)


def test_a_text_of_classes_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / 'classes.txt'

    def read() -> Any:
        return read_classes([str(path)], {0: path})

    contents = [b'\xff\xfe\x00', b'', b'\n\n', b'a\na', b'x' * 10**6,
                ESCAPE.encode() + b'\nx', b'\xef\xbb\xbfa\nb']
    assert not problems(path, read, ((repr(x[:9]), x) for x in contents))
    assert read()[0] == ['a', 'b']
    assert not in_place(path, read)


@pytest.mark.parametrize('entry', [3, None, 'x', {}, ['x'], [[1]], [None]],
                         ids=repr)
def test_scores_of_another_form_count_as_none(entry: Any,
                                              tmp_path: Path) -> None:
    (tmp_path / 'n.json').write_text(json.dumps(dict(a=entry, b=[1., 2])))
    cache = ScoreCache(tmp_path, 'n')
    assert cache.get('a') is None and cache.get('b') == [1., 2]


def test_what_is_not_whole_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / 'step' / 'result.json'
    path.parent.mkdir()
    path.write_text('{"a": [1]}')
    assert read_kept(path) == dict(a=[1])
    for what, content in JSON_FILES.items():
        path.write_bytes(content)
        with judged(len(content)) as verdict:
            assert not stored('step', tmp_path)
            cache = ScoreCache(path.parent, 'result')
            assert cache.get('a') is None
            cache.put('a', [1.])
        assert verdict.error is None and not verdict.problem, what
    for what in IN_PLACE:
        put(path, what)
        assert read_kept(path) == {}

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The report: one JSON list of rows, one page that needs no other file."""

import json
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np

from vim_mm.report.page import Row, Step, write_report

FIELDS = {
    'step', 'task', 'method', 'metric', 'value', 'n_train', 'n_test',
    'seconds', 'peak_mb'
}


def make_steps(folder: Path) -> list:
    cv2.imwrite(str(folder / 'p.png'), np.zeros((4, 4, 3), np.uint8))

    def row(method: str, value: float) -> Row:
        return Row('s', 'digits', method, 'mIoU', value, 20, 30, 1.5, 700.)

    return [
        Step('First <step>', 'A & B.', [row('low', .2), row('high', .4)],
             gates={'layers.0.attn': dict(a=.25, b=.75)},
             pictures=[dict(file='p.png', caption='says "4"')]),
    ]


class Links(HTMLParser):
    """Collects everything a page would load, and its visible cells."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.best, self.depth = [], [], 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.loaded += [attrs[k] for k in ('src', 'href') if k in attrs]
        if tag == 'tr':
            self.depth = attrs.get('class') == 'best'

    def handle_data(self, data: str) -> None:
        if self.depth and data.strip():
            self.best.append(data.strip())


def test_json_is_the_list_of_rows(tmp_path: Path) -> None:
    write_report(str(tmp_path), 'T', 'I', make_steps(tmp_path))
    rows = json.loads((tmp_path / 'report.json').read_text())
    assert [r['value'] for r in rows] == [.2, .4]
    assert all(set(row) == FIELDS for row in rows)


def test_page_is_self_contained_and_marks_the_best(tmp_path: Path) -> None:
    write_report(str(tmp_path), 'T', 'I', make_steps(tmp_path))
    page = (tmp_path / 'report.html').read_text()
    links = Links()
    links.feed(page)
    assert links.loaded and all(
        link.startswith('data:image/png;base64,') for link in links.loaded)
    assert 'high' in links.best and 'low' not in links.best
    assert '&lt;step&gt;' in page and 'layers.0.attn' in page
    assert not list(tmp_path.glob('.report*'))  # nothing half-written is left


def test_rows_that_do_not_compete_have_no_best(tmp_path: Path) -> None:
    steps = make_steps(tmp_path)
    steps[0].ranked = False
    write_report(str(tmp_path), 'T', 'I', steps)
    links = Links()
    links.feed((tmp_path / 'report.html').read_text())
    assert not links.best

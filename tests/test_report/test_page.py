# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The report: one JSON list of rows, one page that needs no other file."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import List

import cv2
import numpy as np
import pytest

from vim_mm.report.figure_parts import SHOWN, columns, heat_map
from vim_mm.report.page import Page, write_report
from vim_mm.report.steps import (TRUTH, Answer, Chart, Contrast, Gallery, Made,
                                 Row, Step)
from vim_mm.report.style import shade

FIELDS = {
    'step', 'task', 'method', 'metric', 'value', 'n_train', 'n_test',
    'seconds', 'peak_mb', 'seed'
}
PAGE = Page('T', 'I', {'gate': 'a weight'}, ['fusion.md', 'absent.md'])


def row(method: str, value: float, seed: int = 0, task: str = 'd') -> Row:
    return Row('s', task, method, 'mIoU', value, 20, 30, 1.5, 700., seed)


def make_steps(folder: Path) -> List[Step]:
    for name in ('p.png', 'q.jpg'):
        cv2.imwrite(str(folder / name), np.zeros((4, 4, 3), np.uint8))
    gallery = Gallery(
        'Which <digit>?', [
            Answer(TRUTH, '1', 'a 4', 'q.jpg'),
            Answer('low', '1', 'says "4"', right=True),
            Answer('low', '2', 'says "5"', right=False)
        ], {'four': (255, 0, 0)})
    return [
        Step(
            'First <step>',
            'A & B.', [row('low', .2), row('high', .4)],
            gates={
                'layers.0.attn': dict(a=.25, b=-.75),
                'layers.0.ffn': dict(a=0.)
            },
            galleries=[gallery],
            charts=[Chart('p.png', 'a chart')],
            contrast=Contrast('What it adds', 'high', 'low'),
            seconds=3.,
            origin='commit abc, today, 2 cores'),
        Step('Preparation', 'Files.', made=[Made('trunk weights', 7, 2., 5.)])
    ]


class Reader(HTMLParser):
    """Collects what a page loads and links, and the text of its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded, self.links, self.best, self.text = [], [], [], []
        self.is_best = self.hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.hidden = tag == 'style'
        self.loaded += [attrs[key] for key in ('src', ) if key in attrs]
        self.links += [attrs[key] for key in ('href', ) if key in attrs]
        if tag == 'tr':
            self.is_best = attrs.get('class') == 'best'

    def handle_data(self, data: str) -> None:
        if data.strip() and not self.hidden:
            self.text.append(data.strip())
            if self.is_best:
                self.best.append(data.strip())


def written(folder: Path, steps: List[Step]) -> Reader:
    write_report(folder, PAGE, steps)
    return Reader((folder / 'report.html').read_text())


def test_json_is_the_list_of_rows(tmp_path: Path) -> None:
    written(tmp_path, make_steps(tmp_path))
    rows = json.loads((tmp_path / 'report.json').read_text())
    assert [r['value'] for r in rows] == [.2, .4]
    assert all(set(row) == FIELDS for row in rows)


def test_page_is_self_contained_and_marks_the_best(tmp_path: Path) -> None:
    page = written(tmp_path, make_steps(tmp_path))
    assert {link.partition(';')[0] for link in page.loaded} == {
        'data:image/png', 'data:image/jpeg'}
    assert 'high' in page.best and 'low' not in page.best
    text = (tmp_path / 'report.html').read_text()
    assert '&lt;step&gt;' in text and '&lt;digit&gt;' in text
    assert not list(tmp_path.glob('.report*'))  # nothing half-written is left


def test_the_headline_comes_first_and_preparation_last(
        tmp_path: Path) -> None:
    text = written(tmp_path, make_steps(tmp_path)).text
    order = [
        text.index(each) for each in ('What it adds', 'First <step>',
                                      'Preparation', 'trunk weights', 'Words')
    ]
    assert order == sorted(order)
    assert '+0.200' in text[:order[1]]
    said = ' '.join(text[:order[1]])
    assert '30 test images, 1 seed' in said
    assert said.count('One seed: directions, not results.') == 1
    # what is prepared has no metric and no value
    made = text[text.index('trunk weights'):text.index('Words')]
    assert made == ['trunk weights', '7', '2', '5']


def test_it_says_where_it_comes_from_and_explains_its_words(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('sys.argv', ['tools/demo.py', '--seed', '1'])
    page = written(tmp_path, make_steps(tmp_path))
    said = ' '.join(page.text)
    assert 'commit abc, today, 2 cores' in said
    assert 'python tools/demo.py --seed 1' in said
    link, = page.links  # to a page that there is
    assert (tmp_path / link).resolve().name == 'fusion.md'
    assert (tmp_path / link).is_file() and 'docs/absent.md' in said
    words = page.text[page.text.index('Words'):]
    assert 'gate' in words and 'mIoU' in words and 'AP50' not in words
    assert '±' not in words
    monkeypatch.setattr('sys.argv', ['vim-mm compare', 'c.py'])
    said = ' '.join(written(tmp_path, make_steps(tmp_path)).text)
    assert 'vim-mm compare c.py' in said and 'python' not in said


def test_steps_of_several_machines_say_so(tmp_path: Path) -> None:
    steps = make_steps(tmp_path)
    text = ' '.join(written(tmp_path, steps).text)
    assert text.count('2 cores') == 1 and 'differ' not in text
    steps[1].origin = 'commit abc, tomorrow, a GPU'
    text = ' '.join(written(tmp_path, steps).text)
    assert 'machines differ' in text
    assert 'took 3 s; commit abc, today, 2 cores' in text
    assert text.count('a GPU') == 1


def test_seeds_are_averaged_and_compared_pair_by_pair(tmp_path: Path) -> None:
    steps = make_steps(tmp_path)
    steps[0].rows += [row('low', .4, 1), row('high', .6, 1)]
    text = written(tmp_path, steps).text
    assert '0.300 ± 0.141' in text and '0.500 ± 0.141' in text
    assert text.count('+0.200 ± 0.000') == 2  # in headline and table
    assert '2 seeds' in ' '.join(text) and '±' in text
    assert 'One seed' not in ' '.join(text)


def test_tasks_of_one_step_have_lines_of_their_own(tmp_path: Path) -> None:
    steps = make_steps(tmp_path)
    steps[0].rows += [row('low', .7, task='e'), row('high', .5, task='e')]
    text = written(tmp_path, steps).text
    assert 'task' in text and {'0.700', '-0.200'} <= set(text)


def test_rows_that_do_not_compete_have_no_best(tmp_path: Path) -> None:
    steps = make_steps(tmp_path)
    steps[0].ranked = False
    assert not written(tmp_path, steps).best


def test_steps_survive_json(tmp_path: Path) -> None:
    from dataclasses import asdict
    for step in make_steps(tmp_path):
        stored = json.loads(json.dumps(asdict(step)))
        again = Step.from_dict(stored)
        for gallery in again.galleries:  # JSON knows no tuples
            gallery.legend = {k: tuple(v) for k, v in gallery.legend.items()}
        assert again == step


# ----------------------------------------------------------- gates, galleries


@pytest.mark.parametrize('weight', [0., -0., .1, -.1])
@pytest.mark.parametrize('seeds', [1, 2])
def test_a_run_without_modules_says_so(weight: float, seeds: int,
                                       tmp_path: Path) -> None:
    step = make_steps(tmp_path)[0]
    step.rows = [row(method, value, seed) for seed in range(seeds)
                 for method, value in (('low', .2), ('single: a', .1),
                                       ('high', .4))]
    step.gates = {'s': dict(a=weight, b=0.)}
    said = ' '.join(written(tmp_path, [step]).text)
    assert ('no module runs: what differs' in said) == (
        not weight and seeds == 1)
    assert ('All are zero' in said) == (not weight)
    assert ('Fuse (high)' in said) == bool(weight or seeds == 2)


def test_negative_gates_are_seen() -> None:
    text = heat_map({'s': dict(a=.5, b=-.5), 't': dict(a=0.)})
    shown = Reader(text).text
    assert {'0.50', '-0.50', '0.00'} <= set(shown)
    colours = [shade(weight, 1.)[0] for weight in (.5, -.5, 0.)]
    assert all(colour in text for colour in colours)
    assert len(set(colours)) == 3 and colours[2] == 'rgb(255,255,255)'
    assert text.count('class=none') == 1  # b does not sit in t
    green, red = (list(map(int, c[4:-1].split(','))) for c in colours[:2])
    assert green[1] > green[0] and red[0] > red[1]


@pytest.mark.parametrize('largest', [1., 0.])
def test_weights_of_zero_are_white(largest: float) -> None:
    assert shade(0., largest) == ('rgb(255,255,255)', '#1c2430')


def answers(rights: List[bool]) -> Gallery:
    return Gallery(answers=[
        Answer(method, str(i), '', right=right != (method == 'first'))
        for method in ('first', 'last') for i, right in enumerate(rights)
    ])


@pytest.mark.parametrize(('rights', 'wrong'), [
    ([True] * 20 + [False] * 20, SHOWN // 2),
    ([True] * 20 + [False], 1),
    ([False] * 20 + [True], SHOWN - 1),
    ([True] * 20, 0),
    ([False, True], 1),
])
def test_right_and_wrong_answers_are_shown(rights: List[bool],
                                           wrong: int) -> None:
    shown = [int(image) for image in columns(answers(rights))]
    assert shown == sorted(shown)
    assert len(shown) == min(SHOWN, len(rights))
    assert sum(not rights[i] for i in shown) == wrong


def test_answers_without_right_or_wrong_are_spread() -> None:
    gallery = Gallery(answers=[Answer('m', str(i), '') for i in range(11)])
    assert columns(gallery) == ['0', '2', '4', '6', '8', '10']


def test_a_grid_has_the_truth_above_and_blanks(tmp_path: Path) -> None:
    steps = make_steps(tmp_path)
    gallery = steps[0].galleries[0]
    gallery.answers = gallery.answers[1:] + gallery.answers[:1]
    gallery.answers.append(Answer('late', '1', 'says "6"'))
    text = written(tmp_path, steps).text
    grid = text[text.index('four'):]
    order = [grid.index(each) for each in (TRUTH, 'low', 'late')]
    assert order == sorted(order)
    assert {'✓', '✗'} & set(text)

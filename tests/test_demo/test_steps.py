# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A finished step is reused until something it depends on changes."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from _outside import write_project
from mmengine.config import Config

from vim_mm.demo import common, mtht
from vim_mm.demo import steps as demo
from vim_mm.demo import student
from vim_mm.report import Answer, Gallery, Page, Row, write_report
from vim_mm.report.origin import docs_folder
from vim_mm.report.steps import TRUTH

STEP = 'midstream_digits_seg'


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ('tree_crowns', 'solar_cells', 'digits_on_photographs'):
        (tmp_path / 'data' / name).mkdir(parents=True)
        (tmp_path / 'data' / name / 'manifest.json').write_text('{}')
    monkeypatch.setattr(common, 'default_out', lambda n: tmp_path / 'data' / n)
    result = tmp_path / 'out' / STEP / 'result.json'
    result.parent.mkdir(parents=True)
    key = demo.fingerprint(STEP, tmp_path / 'out')
    result.write_text(json.dumps(dict(fingerprint=key, format=common.FORMAT)))
    return tmp_path / 'out'


@pytest.mark.parametrize(('folder', 'steps'), [('demo', demo.STEPS),
                                               ('zoo_demo', demo.ZOO_STEPS)])
def test_every_step_has_a_config(folder: str, steps: dict) -> None:
    configs = {path.stem for path in (demo.CONFIGS / folder).glob('*.py')}
    assert set(steps) == configs
    assert {step.folder for step in steps.values()} == {folder}


def test_a_finished_step_is_reused(work_dir: Path) -> None:
    assert demo.finished(STEP, work_dir)
    assert not demo.finished('midstream_digits_cls', work_dir)


@pytest.mark.parametrize('what', ['data', 'version', 'config', 'seed'])
def test_a_change_runs_it_again(work_dir: Path, what: str,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    if what == 'data':
        manifest = common.default_out('tree_crowns') / 'manifest.json'
        manifest.write_text('{"seed": 1}')
    elif what == 'version':
        monkeypatch.setattr('vim_mm.__version__', '9.9.9')
    else:
        changed = demo.step_config(STEP, work_dir)
        changed.model.backbone.adapter.hidden_dims = 4
        monkeypatch.setattr(demo, 'step_config', lambda *_: changed)
    assert not demo.finished(STEP, work_dir, int(what == 'seed'))


def test_a_downstream_step_depends_on_the_zoo(work_dir: Path) -> None:
    name = 'downstream_digits_cls'
    assert demo.step_config(name, work_dir).model.backbone.zoo == str(
        work_dir / 'zoo')
    (work_dir / 'zoo').mkdir()
    before = demo.fingerprint(name, work_dir)
    source = Path(__file__).parents[1] / 'test_zoo/data/zoo_v1/tiny'
    target = work_dir / 'zoo' / 'trees'
    target.mkdir(parents=True)
    for path in source.iterdir():
        text = path.read_bytes()
        if path.name == 'card.json':
            text = text.replace(b'"tiny"', b'"trees"')
        (target / path.name).write_bytes(text)
    assert demo.fingerprint(name, work_dir) != before


def test_preparation_keeps_what_it_took(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def maker(recipe, out):
        reused = recipe.name in made
        made.append(recipe.name)
        return dict(files=7), reused

    monkeypatch.setattr(common, 'prepare_dataset', maker)
    monkeypatch.setenv('VIM_MM_WEIGHTS', str(tmp_path))
    monkeypatch.setattr(common, 'convert_trunk',
                        lambda kind, src, dst: dst.write_text('weights'))
    said = []
    first = common.prepare(tmp_path / 'out', said.append)
    assert len(first.made) == len(said) == 4 and not first.rows
    assert all(each.seconds >= 0 and each.peak_mb > 0 for each in first.made)
    again = common.prepare(tmp_path / 'out', said.append)
    # the cost of the run that made it, not of finding it there
    assert again == first == common.load(common.PREPARE, tmp_path / 'out')
    assert all('written' in line for line in said[:4])
    assert all('reused' in line for line in said[4:])


def test_results_of_another_format_are_made_anew(work_dir: Path) -> None:
    path = work_dir / STEP / 'result.json'
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(dict(stored, format=common.FORMAT - 1)))
    assert not demo.finished(STEP, work_dir)


def test_the_best_single_module_answers(work_dir: Path,
                                        monkeypatch: pytest.MonkeyPatch
                                        ) -> None:
    """Trunk, the best module and the fusion are seen side by side."""

    def ask(gallery, runner, work_dir, name, method):
        gallery.answers.append(Answer(method, '0', ''))

    monkeypatch.setattr(demo, 'ask', ask)
    gallery, rows = Gallery(), []
    for method, value in (('frozen trunk', .1), ('single: a', .4),
                          ('single: b', .3), ('single: c', .6),
                          ('trained from scores', .5)):
        rows.append(Row('s', 't', method, 'm', value, 1, 1, 1., 1.))
        demo._ask(gallery, None, work_dir, rows)
    assert gallery.methods() == ['frozen trunk', 'single: c',
                                 'trained from scores']


@pytest.mark.parametrize('name', ['steps', 'zoo', 'mtht', 'student'])
def test_headlines_explain_themselves(name: str) -> None:
    """Of each demo: its words, and the pages to read on."""
    module = import_module(f'vim_mm.demo.{name}')
    assert '{seed}' in module.INTRO and module.TERMS
    assert all((docs_folder() / page).is_file() for page in module.DOCS)


def test_a_step_from_its_run_to_the_page(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, out = 'midstream_digits_cls', tmp_path / 'out'
    config = write_project(
        tmp_path, 'cls', "custom_hooks = [dict(type='vim_mm.WarmHeadHook', "
        'epochs=1, evaluate=True)]')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, 'step_config',
                        lambda *_: Config.fromfile(config))
    monkeypatch.setattr(demo, 'inputs', list)
    demo.run(name, out, seed=5)
    assert demo.finished(name, out)
    step = common.load(name, out)
    assert [(row.method, row.seed) for row in step.rows] == [
        ('frozen trunk, warmed head', 5), ('with the module', 5)
    ]
    assert step.galleries[0].methods() == [TRUTH, 'with the module']
    assert step.gates is None and 'vim_mm' in step.origin
    page = Page(demo.TITLE, demo.INTRO, demo.TERMS, demo.DOCS)
    write_report(out, page, [step])
    text = (out / 'report.html').read_text()
    assert 'What a module adds' in text and 'data:image/jpeg' in text


def test_what_other_demos_find_becomes_a_step() -> None:
    row = Row('s', 't', 'm', 'accuracy', .5, 1, 1, 1., 1.)
    for about in (*mtht.STEPS.values(), *student.STEPS.values()):
        step = common.Found([row]).step(about, 0., ranked=True)
        assert (step.title, step.text) == (about.title, about.text)
        assert step.contrast is about.contrast and step.rows == [row]

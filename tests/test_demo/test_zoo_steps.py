# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The zoo of eight: four modules taken over, four learned."""

import json
from pathlib import Path

import pytest

from vim_mm.demo import common, steps, zoo
from vim_mm.utils.data import check_data
from vim_mm.zoo import Zoo, ZooError

TINY = Path(__file__).parents[1] / 'test_zoo/data/zoo_v1/tiny'


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside a demo that has run."""
    monkeypatch.chdir(tmp_path)
    for name in zoo.DEMO_MODULES:
        Zoo(zoo.DEMO_ZOO).add(TINY, name)
    monkeypatch.setattr(zoo, 'check_data', lambda *_: None)
    return Path('work_dirs/zoo-demo')


def changed(name: str) -> None:
    """Another module of that name in the demo's zoo."""
    card, tensors = Zoo(zoo.DEMO_ZOO).load(name)
    more = {key: value + 1 for key, value in tensors.items()}
    Zoo(zoo.DEMO_ZOO).save(card, more, overwrite=True)


def test_the_modules_are_those_of_the_demo() -> None:
    learned = [
        steps.step_config(name, Path('w')).model.backbone.get('new_module')
        for name in steps.STEPS
    ]
    assert tuple(filter(None, learned)) == zoo.DEMO_MODULES


@pytest.mark.parametrize('name', steps.ZOO_STEPS)
def test_cards_say_what_was_learned(name: str) -> None:
    cfg = steps.step_config(name, Path('w'))
    hook = next(h for h in cfg.custom_hooks if h.type.endswith('ZooHook'))
    assert hook.task == name.rpartition('_')[2]
    assert hook.dataset and hook.licence and hook.zoo == str(Path('w/zoo'))
    assert cfg.model.backbone.new_module not in zoo.DEMO_MODULES


def test_modules_are_taken_over_once(work_dir: Path) -> None:
    before = sorted(zoo.DEMO_ZOO.rglob('*'))
    assert not zoo.finished(zoo.TAKEN, work_dir)
    zoo.run(zoo.TAKEN, work_dir)
    assert zoo.finished(zoo.TAKEN, work_dir)
    taken = Zoo(work_dir / 'zoo')
    assert sorted(taken.names()) == sorted(zoo.DEMO_MODULES)
    assert not taken.verify()
    assert sorted(zoo.DEMO_ZOO.rglob('*')) == before
    step = common.load(zoo.TAKEN, work_dir)
    assert [each.name for each in step.made] == list(zoo.DEMO_MODULES)


@pytest.mark.parametrize('what', ['demo', 'own'])
def test_a_change_takes_them_over_again(work_dir: Path, what: str) -> None:
    zoo.run(zoo.TAKEN, work_dir)
    if what == 'demo':
        changed('solar')
    else:
        Zoo(work_dir / 'zoo').remove('solar')
    assert not zoo.finished(zoo.TAKEN, work_dir)
    zoo.run(zoo.TAKEN, work_dir)
    assert zoo.finished(zoo.TAKEN, work_dir)
    assert Zoo(work_dir / 'zoo').card('solar').sha256 == Zoo(
        zoo.DEMO_ZOO).card('solar').sha256


@pytest.mark.parametrize('missing', ['solar', None])
def test_a_demo_that_has_not_run_is_named(work_dir: Path,
                                          missing: str) -> None:
    for name in [missing] if missing else zoo.DEMO_MODULES:
        Zoo(zoo.DEMO_ZOO).remove(name)
    with pytest.raises(ZooError, match='lacks .*solar; `make demo` makes'):
        zoo.run(zoo.TAKEN, work_dir)
    assert not work_dir.exists()


def test_absent_data_is_named_before_anything_learns(
        work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, 'check_data', check_data)
    monkeypatch.setenv('VIM_MM_DATA', 'nowhere')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        zoo.run(zoo.TAKEN, work_dir)
    assert not work_dir.exists()


def test_steps_that_learn_are_those_of_the_demo(
        work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, 'inputs', list)
    name = 'midstream_camvid_seg'
    assert not zoo.finished(name, work_dir, 1)
    result = work_dir / name / 'result.json'
    result.parent.mkdir(parents=True)
    result.write_text(
        json.dumps(
            dict(
                format=common.FORMAT,
                fingerprint=steps.fingerprint(name, work_dir, 1))))
    assert zoo.finished(name, work_dir, 1)
    assert not zoo.finished(name, work_dir, 0)

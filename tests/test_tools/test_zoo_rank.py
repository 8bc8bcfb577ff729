# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""``tools/zoo.py rank`` from the command line to its answer."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Tuple

import cv2
import pytest
from _crowd import spoil
from mmengine.config import Config
from mmengine.registry import DATASETS

from _tiny import (KINDS, SCOPES, Pictures, add_modules, build_backbone, fill,
                   first_of, fusion_neck, model_cfg, save_trunk)
from vim_mm.utils.messages import LINES
from vim_mm.zoo import save_module

SCRIPT = Path(__file__).parents[2] / 'tools' / 'zoo.py'
SCORES = ['ours', 'logme', 'nleep', 'hscore']


@pytest.fixture(autouse=True)
def registered() -> None:
    DATASETS.register_module('TinyPictures', force=True, module=Pictures)
    yield
    DATASETS._module_dict.pop('TinyPictures')


def prepare(folder: Path, kind: str) -> str:
    """A config file, a zoo of two modules that fit and one that does not."""
    trunk = save_trunk(folder / 'trunk.pth')
    for names, path in ((('up', 'down'), trunk),
                        (('foreign', ),
                         save_trunk(folder / 'other.pth', seed=5))):
        backbone = build_backbone(path)
        add_modules(backbone, *names)
        for name in names:
            fill(backbone.bank.members[name], .3 if name == 'up' else .01)
            save_module(backbone, name, str(folder / 'zoo'))
    cfg = Config(
        dict(
            default_scope=SCOPES[kind],
            model=model_cfg(kind, dict(trunk=trunk), fusion_neck(kind)),
            train_dataloader=dict(
                dataset=dict(
                    type='mmengine.TinyPictures', kind=kind, num=12),
                batch_size=4,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='pseudo_collate'))))
    cfg.dump(folder / f'few_{kind}.py')
    rows = [
        dict(step=f'few_{kind}', method=f'single: {name}', metric='mIoU',
             value=value) for name, value in (('up', .25), ('down', .5))
    ]
    (folder / 'report.json').write_text(json.dumps(rows))
    return str(folder / f'few_{kind}.py')


def rank(capsys, monkeypatch, *args: str) -> Tuple[int, str, str]:
    """Exit code, stdout and stderr of the tool."""
    monkeypatch.setattr(sys, 'argv', [str(SCRIPT), 'rank', *args])
    monkeypatch.setenv('COLUMNS', '200')
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name='__main__')
    out, err = capsys.readouterr()
    return caught.value.code or 0, out, err


@pytest.mark.parametrize('kind', first_of(KINDS))
def test_it_answers_in_json_and_tables(kind: str, tmp_path: Path, capsys,
                                       monkeypatch) -> None:
    config, zoo = prepare(tmp_path, kind), str(tmp_path / 'zoo')
    common = config, '--zoo', zoo, '--evidence', str(tmp_path / 'report.json')
    before = sorted(tmp_path.rglob('*'))
    code, out, _ = rank(capsys, monkeypatch, *common, '--json')
    assert code == 0
    # a logger that an earlier test made may speak first
    answer = json.loads(out[out.index('{\n'):])
    assert {'frozen trunk', 'up', 'down', 'uniform weights'} <= set(
        answer['scores'])
    assert set(answer['weights']) == {'up', 'down'}
    assert list(answer['scores']['up']) == SCORES
    assert list(answer['skipped']) == ['foreign']
    assert (answer['metric'], answer['usefulness']) == (
        'mIoU', dict(up=.25, down=.5))
    assert list(answer['agreement']) == SCORES
    for score, found in answer['agreement'].items():
        up, down = (answer['scores'][m][score] for m in ('up', 'down'))
        assert found['tau'] == (None if up == down else 2 * (down > up) - 1)
        assert found['regret'] == (0 if found['top'] == 'down' else .25)

    code, out, _ = rank(capsys, monkeypatch, *common, '--pictures', '5')
    assert code == 0
    # one of the two batches is whole, and so is the other
    assert '8 images, ' in out and 'not scored: foreign. Module' in out
    assert 'Kendall tau' in out and 'mIoU lost' in out
    assert 'Over 2 with known mIoU.' in out and 'Verdict: ' in out
    assert sorted(tmp_path.rglob('*')) == before


def test_bad_folders_are_told_of(tmp_path: Path, capsys, monkeypatch) -> None:
    config, zoo = prepare(tmp_path, 'seg'), tmp_path / 'zoo'
    number = spoil(zoo) + 1  # and one that does not fit
    code, out, _ = rank(capsys, monkeypatch, config, '--zoo', str(zoo))
    assert code == 0
    assert out.count('not scored: ') == LINES
    assert f'… and {number - LINES} more' in out
    assert not set(out) & set('\x1b\x9b\x07')
    code, out, _ = rank(capsys, monkeypatch, config, '--zoo', str(zoo),
                        '--json')
    answer = json.loads(out[out.index('{\n'):])
    assert {'up', 'down'} < set(answer['scores'])
    assert len(answer['skipped']) == number
    assert all(reason.isprintable() and len(reason) < 1500
               for reason in answer['skipped'].values())


def test_a_zoo_of_bad_folders_alone(tmp_path: Path, capsys,
                                    monkeypatch) -> None:
    config, zoo = prepare(tmp_path, 'seg'), tmp_path / 'bad'
    zoo.mkdir()
    number = spoil(zoo)
    code, _, err = rank(capsys, monkeypatch, config, '--zoo', str(zoo))
    assert code == 1 and f'it holds {number}.' in err
    assert 'Traceback' not in err and len(err) < 6000
    assert not set(err) & set('\x1b\x9b\x07')


@pytest.mark.slow
def test_json_stays_alone_in_a_fresh_process(tmp_path: Path) -> None:
    """mmengine logs to stdout, from the moment a config is read."""
    config = prepare(tmp_path, 'cls')
    pictures = tmp_path / 'pictures'
    for index, name in enumerate('ab' * 4):
        (pictures / name).mkdir(parents=True, exist_ok=True)
        picture = Pictures('cls').samples[index]['inputs']
        cv2.imwrite(
            str(pictures / name / f'{index}.png'),
            picture.permute(1, 2, 0).numpy())
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset = dict(
        type='CustomDataset',
        data_prefix='{{$VIM_MM_TEST_PICTURES:x}}',
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    cfg.dump(config)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), 'rank', config, '--json', '--zoo',
         str(tmp_path / 'zoo')],
        env=dict(os.environ, VIM_MM_TEST_PICTURES=str(pictures)),
        capture_output=True, text=True, timeout=120)  # yapf: disable
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['num_pictures'] == 8
    assert 'mmengine - INFO' in done.stderr
    # nothing is said of each parameter
    assert 'init_weights' not in done.stderr


def test_the_config_may_name_the_zoo(tmp_path: Path, capsys,
                                     monkeypatch) -> None:
    config = prepare(tmp_path, 'cls')
    code, _, err = rank(capsys, monkeypatch, config)
    assert code == 1 and 'names no zoo; give one with --zoo' in err
    code, out, _ = rank(capsys, monkeypatch, config, '--cfg-options',
                        f'model.backbone.zoo={tmp_path}/zoo',
                        'train_dataloader.dataset.num=9')
    assert code == 0 and '9 images, 9 rows, 2 classes' in out
    assert 'agreement' not in out


def test_mistakes_are_one_sentence(tmp_path: Path, capsys,
                                   monkeypatch) -> None:
    config, zoo = prepare(tmp_path, 'cls'), str(tmp_path / 'zoo')
    other = f'model.backbone.trunk.init_cfg.checkpoint={tmp_path}/gone.pth'
    report = str(tmp_path / 'report.json')
    for args, message in (
        ((config, '--zoo', str(tmp_path / 'none')), 'There is no zoo at'),
        ((str(tmp_path / 'gone.py'), '--zoo', zoo), 'gone.py'),
        ((config, '--zoo', zoo, '--cfg-options', other), 'do not exist'),
        ((config, '--zoo', zoo, '--evidence', str(tmp_path / 'no.json')),
         'no.json'),
        ((config, '--zoo', zoo, '--pictures', '1'), 'must be 2 or more'),
    ):
        code, out, err = rank(capsys, monkeypatch, *args)
        assert code == 1 and message in err and '{' not in out, args
        assert err.splitlines()[-1].startswith('Error: ')
    # the evidence is read before minutes of features
    renamed = tmp_path / 'other_cls.py'
    renamed.write_text(Path(config).read_text())
    code, _, err = rank(capsys, monkeypatch, str(renamed), '--zoo', zoo,
                        '--evidence', report)
    assert code == 1 and "of the step 'other_cls'" in err


def test_a_zoo_of_another_trunk_ranks_nothing(tmp_path: Path, capsys,
                                              monkeypatch) -> None:
    config = prepare(tmp_path, 'cls')
    third = save_trunk(tmp_path / 'third.pth', seed=9)
    code, out, err = rank(
        capsys, monkeypatch, config, '--zoo', str(tmp_path / 'zoo'),
        '--cfg-options', 'model.backbone.trunk.init_cfg.checkpoint='
        f'{third["init_cfg"]["checkpoint"]}')
    assert code == 1 and 'ours' not in out
    assert 'No module of the zoo' in err and 'foreign: Module' in err

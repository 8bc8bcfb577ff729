# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import importlib.util
import io
import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from vim_mm.utils.cli import run_cli
from vim_mm.zoo import ModuleCard, Zoo, trunk_fingerprint

SCRIPT = Path(__file__).parents[2] / 'tools' / 'zoo.py'
MODEL = '''
default_scope = 'mmpretrain'
module_card = dict(task='cls', dataset='shapes', licence='Apache-2.0')
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='vim_mm.ViMBackbone',
        trunk=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=16, num_layers=1, num_heads=2,
                      feedforward_channels=32),
            img_size=32, patch_size=16, out_type='cls_token'),
        adapter=dict(type='vim_mm.ConvPass', hidden_dims=2),
        new_module='shapes', probe_size=32, save_trunk=True),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
'''


class Cli:
    """The tool, as a shell sees it."""

    def __init__(self):
        spec = importlib.util.spec_from_file_location('zoo_cli', SCRIPT)
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)

    def main(self, argv):
        """The exit code."""
        with pytest.raises(SystemExit) as caught:
            run_cli(lambda: self.module.main(argv))
        return caught.value.code or 0


@pytest.fixture(scope='module')
def cli():
    return Cli()


@pytest.fixture
def zoo(tmp_path):
    zoo = Zoo(tmp_path / 'zoo')
    for name in ('boats', 'cars'):
        card = ModuleCard(
            name=name,
            kind='ConvPass',
            adapter=dict(type='ConvPass'),
            slots=['a.b'],
            dims={'a.b': 3},
            trunk=dict(type='Net', fingerprint='f' * 64),
            metrics=[dict(name='AP', value=0.5, n=7)])
        zoo.save(card, {'a.b.w': torch.ones(3)})
    return zoo


def damage(zoo, name):
    path = zoo.root / name / 'module.safetensors'
    path.write_bytes(path.read_bytes()[:-1])


def test_list(cli, zoo, capsys):
    assert cli.main(['list', str(zoo.root), '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == [card.to_dict() for card in zoo.cards()]
    (zoo.root / 'cars' / 'card.json').write_text('{')
    assert cli.main(['list', str(zoo.root)]) == 0
    out = capsys.readouterr().out
    assert 'boats' in out and 'cars' in out
    assert cli.main(['list', str(zoo.root), '--json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[0]['name'] == 'boats' and 'not valid JSON' in rows[1]['error']


def test_a_module_is_no_zoo(cli, zoo, capsys):
    assert cli.main(['list', str(zoo.root / 'cars')]) == 1
    assert "cars' is a module, and no zoo; name" in capsys.readouterr().err


def test_show(cli, zoo, capsys):
    assert cli.main(['show', str(zoo.root), 'boats', '--json']) == 0
    assert ModuleCard.from_json(capsys.readouterr().out) == zoo.card('boats')
    assert cli.main(['show', str(zoo.root), 'boats']) == 0
    out = capsys.readouterr().out
    assert 'AP 0.5 (n=7)' in out and 'a.b … a.b, dims 3' in out


def test_verify(cli, zoo, capsys):
    assert cli.main(['verify', str(zoo.root)]) == 0
    damage(zoo, 'cars')
    assert cli.main(['verify', str(zoo.root), 'boats']) == 0
    capsys.readouterr()
    assert cli.main(['verify', str(zoo.root)]) == 1
    out, err = capsys.readouterr()
    assert 'damaged' in out
    assert err.startswith('Error: 1 of 2 modules are not valid. (VIM_MM_')


def test_verify_of_no_module(cli, tmp_path, capsys):
    assert cli.main(['verify', str(tmp_path)]) == 1
    assert 'holds no module to verify' in capsys.readouterr().err


def test_add(cli, zoo, tmp_path, capsys):
    other = Zoo(tmp_path / 'other')
    add = ['add', str(other.root), str(zoo.root / 'cars'), '--name', 'vans']
    assert cli.main(add) == 0
    assert cli.main(['add', str(other.root), str(zoo.root)]) == 0
    assert other.names() == ['boats', 'cars', 'vans']
    assert cli.main(add) == 1
    assert "already has a module 'vans'" in capsys.readouterr().err


def test_remove(cli, zoo, capsys, monkeypatch):
    remove = ['remove', str(zoo.root), 'cars']
    monkeypatch.setattr(sys, 'stdin', io.StringIO('y\n'))
    assert cli.main(remove) == 1 and '--yes' in capsys.readouterr().err
    monkeypatch.setattr(sys.stdin, 'isatty', lambda: True)
    monkeypatch.setattr(cli.module.Confirm, 'ask', lambda _: False)
    assert cli.main(remove) == 0 and 'cars' in zoo
    monkeypatch.setattr(cli.module.Confirm, 'ask', lambda _: True)
    assert cli.main(remove) == 0 and 'cars' not in zoo
    capsys.readouterr()
    assert cli.main(remove + ['--yes']) == 1
    assert "no module 'cars'" in capsys.readouterr().err


def test_error_is_one_sentence_and_exit_code_1(zoo, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv',
                        [str(SCRIPT), 'show',
                         str(zoo.root), 'boat'])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name='__main__')
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and out == ''
    assert err == (f"Error: The zoo '{zoo.root}' has no module 'boat'; did "
                   'you mean boats? (VIM_MM_TRACEBACK=1 shows the '
                   'traceback.)\n')


def test_a_zoo_that_may_not_be_written_is_one_sentence(cli, zoo, capsys):
    (zoo.root.parent / 'file').write_text('')
    add = ['add', str(zoo.root.parent / 'file' / 'zoo'), str(zoo.root)]
    assert cli.main(add) == 1
    assert 'is no folder that this user may write in' in (
        capsys.readouterr().err)


@pytest.fixture
def trained(tmp_path):
    """A config, and a checkpoint of its model with all values random."""
    config = tmp_path / 'tiny.py'
    config.write_text(MODEL)
    init_default_scope('mmpretrain')
    model = MODELS.build(Config.fromfile(config).model)
    for value in model.parameters():
        torch.nn.init.normal_(value)
    # the trunk's values changed, and with them its name in the checkpoint
    digest = trunk_fingerprint(model.backbone.trunk,
                               list(model.backbone.slots))
    model.backbone.trunk_fingerprint.copy_(
        torch.tensor(list(bytes.fromhex(digest))))
    checkpoint = tmp_path / 'tiny.pth'
    torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
    return model, str(config), str(checkpoint)


def test_save(cli, trained, tmp_path, capsys):
    model, config, checkpoint = trained
    zoo = Zoo(tmp_path / 'new')
    save = ['save', config, checkpoint, str(zoo.root)]
    assert cli.main(save) == 0
    card, tensors = zoo.load('shapes')
    exported = model.backbone.bank.export('shapes')
    assert tensors.keys() == exported.keys()
    assert all(torch.equal(tensors[k], exported[k]) for k in exported)
    head = zoo.load_head('shapes')
    assert torch.equal(head['head.fc.weight'], model.head.fc.weight)
    assert (card.task, card.dataset) == ('cls', 'shapes')
    assert card.training == dict(config='tiny.py')
    zoo.check_trunk(card, model.backbone.trunk)
    capsys.readouterr()
    assert cli.main(save) == 1
    assert 'already has a module' in capsys.readouterr().err
    assert cli.main(save + ['--overwrite']) == 0
    assert cli.main(save + ['--name', 'again']) == 0
    assert zoo.names() == ['again', 'shapes'] and zoo.verify() == []


def test_save_refuses_what_was_not_trained(cli, trained, tmp_path, capsys):
    _, config, checkpoint = trained
    zoo = str(tmp_path / 'new')
    other = ['--cfg-options', 'model.backbone.new_module=other']
    assert cli.main(['save', config, checkpoint, zoo] + other) == 1
    assert 'it is of another model' in capsys.readouterr().err
    # mmengine would warn of another width and leave the values at random
    wide = ['--cfg-options', 'model.backbone.adapter.hidden_dims=3']
    assert cli.main(['save', config, checkpoint, zoo] + wide) == 1
    assert "Module 'shapes' of the checkpoint" in capsys.readouterr().err
    none = ['--cfg-options', 'model.backbone.new_module=None']
    assert cli.main(['save', config, checkpoint, zoo] + none) == 1
    assert 'trains no module' in capsys.readouterr().err
    assert cli.main(['save', config, str(tmp_path / 'no.pth'), zoo]) == 1
    assert 'no.pth' in capsys.readouterr().err
    loaded = torch.load(checkpoint, weights_only=False)
    loaded['meta']['trunk_moved'] = 'The trunk \x1b[2Jchanged.'
    torch.save(loaded, checkpoint)
    assert cli.main(['save', config, checkpoint, zoo]) == 1
    assert r'was not saved. The trunk \x1b[2Jchanged.' in (
        capsys.readouterr().err)
    assert not os.path.exists(zoo)


def test_brackets_of_a_card_are_text(cli, trained, tmp_path, capsys):
    _, config, checkpoint = trained
    dataset = ['--cfg-options', 'module_card.dataset="COCO [/train] [red]x"']
    zoo = str(tmp_path / 'brackets')
    assert not cli.main(['save', config, checkpoint, zoo] + dataset)
    assert not cli.main(['list', zoo])
    assert '[/train]' in capsys.readouterr().out

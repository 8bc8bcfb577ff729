# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

import vim_mm
from vim_mm.utils.files import sha256
from vim_mm.zoo import Zoo, ZooError

MODULE = 'module.safetensors'


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# ------------------------------------------------------------- round trips


def test_round_trip_is_bit_exact(tmp_path, make_card, make_tensors):
    zoo, tensors = Zoo(tmp_path / 'deep' / 'zoo'), make_tensors()
    tensors['layers.0.attn.down.bias'][0] = -0.0
    tensors['layers.0.attn.down.bias'][1] = 1e-45
    head = {'neck.w': torch.rand(3, 2), 'neck.steps': torch.tensor(7)}
    saved = zoo.save(make_card(), tensors, head)
    card, loaded = zoo.load('m')
    assert card == saved and same(loaded, tensors)
    for key in tensors:
        assert loaded[key].numpy().tobytes() == tensors[key].numpy().tobytes()
    assert same(zoo.load_head('m'), head)
    assert card.num_params == sum(t.numel() for t in tensors.values())
    assert card.vim_mm_version == vim_mm.__version__
    assert same(load_file(zoo.root / 'm' / MODULE), tensors)
    assert zoo.names() == ['m'] and zoo.cards() == [card] and 'm' in zoo
    assert zoo.verify() == []


@pytest.mark.slow  # and in test_invariants, with a backbone
def test_round_trip_in_a_fresh_process(zoo):
    code = ('import sys; from vim_mm.utils.files import sha256\n'
            'from vim_mm.zoo import Zoo, files\n'
            'card, tensors = Zoo(sys.argv[1]).load("m")\n'
            'print(card.name, sha256(files.pack(tensors)))')
    env = dict(os.environ, PYTHONPATH=str(Path(vim_mm.__file__).parents[1]))
    out = subprocess.run([sys.executable, '-c', code,
                          str(zoo.root)],
                         env=env,
                         capture_output=True,
                         text=True,
                         check=True).stdout
    data = (zoo.root / 'm' / MODULE).read_bytes()
    assert out.split() == ['m', sha256(data)]


def test_parameters_that_require_grad_are_saved_as_values(
        tmp_path, make_card, make_tensors):
    tensors = {k: torch.nn.Parameter(v) for k, v in make_tensors().items()}
    zoo = Zoo(tmp_path)
    zoo.save(make_card(), tensors)
    loaded = zoo.load('m')[1]
    assert all(torch.equal(loaded[k], tensors[k]) for k in tensors)
    assert not any(t.requires_grad for t in loaded.values())


def test_module_of_format_1_still_loads():
    zoo = Zoo(Path(__file__).parent / 'data' / 'zoo_v1')
    card, tensors = zoo.load('tiny')
    assert zoo.verify() == [] and card.adapter['hidden_dims'] == 1
    assert torch.equal(tensors['layers.0.attn.down.weight'],
                       torch.arange(4.).view(1, 4) / 8)
    assert torch.equal(
        zoo.load_head('tiny')['bbox_head.bias'], torch.tensor([0.5, -0.5]))


# ----------------------------------------------------------- damaged files


def test_truncated_file_is_refused(zoo, forge):
    path = zoo.root / 'm' / MODULE
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(ZooError, match='is damaged or was exchanged'):
        zoo.load('m')
    # with a card that vouches for it, the format itself must notice
    for cut in (0, 4, 8, 40, len(data) - 4):
        forge(zoo, data[:cut])
        with pytest.raises(ZooError, match='not a valid safetensors file'):
            zoo.load('m')
    assert len(zoo.verify('m')) == 1


def test_wrong_lengths_are_refused(zoo, forge):
    data = (zoo.root / 'm' / MODULE).read_bytes()
    size = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + size])
    key = 'layers.0.attn.down.bias'
    cases = [
        data + b'\0' * 8,
        struct.pack('<Q', 1 << 40) + data[8:],
        struct.pack('<Q', (1 << 64) - 1) + data[8:],
        struct.pack('<Q', size - 1) + data[8:],
    ]
    for field, value in (('shape', [3]), ('shape', [1 << 62, 8]),
                         ('dtype', 'F64'), ('dtype', 'Q7'),
                         ('data_offsets', [0, 1 << 50])):
        wrong = {**header, key: {**header[key], field: value}}
        text = json.dumps(wrong).encode()
        cases.append(struct.pack('<Q', len(text)) + text + data[8 + size:])
    for case in cases:
        forge(zoo, case)
        with pytest.raises(ZooError, match='not a valid safetensors file'):
            zoo.load('m')


class Evil:

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('dump', [
    lambda obj: pickle.dumps(obj),
    lambda obj: pickle.dumps({'layers.0.attn.down.weight': obj}, protocol=0),
])
def test_pickle_in_disguise_is_not_executed(zoo, forge, tmp_path, dump):
    marker = tmp_path / 'executed'
    data = dump(Evil(marker))
    pickle.loads(data)
    assert marker.exists()
    marker.unlink()
    forge(zoo, data)
    with pytest.raises(ZooError, match='not a valid safetensors file'):
        zoo.load('m')
    assert zoo.verify() and not marker.exists()
    with pytest.raises(ZooError):
        Zoo(tmp_path / 'other').add(zoo.root / 'm')
    assert not marker.exists() and not (tmp_path / 'other').exists()


def test_torch_checkpoint_in_disguise_is_refused(zoo, forge, tmp_path):
    torch.save(zoo.load('m')[1], tmp_path / 'c.pth')
    forge(zoo, (tmp_path / 'c.pth').read_bytes())
    with pytest.raises(ZooError, match='not a valid safetensors file'):
        zoo.load('m')


# --------------------------------------------- tensors against their card


def break_(tensors, kind):
    key = 'layers.1.ffn.up.weight'
    value = tensors.pop(key)
    if kind == 'slot':
        tensors['blocks.1.ffn.up.weight'] = value
    elif kind == 'param':
        tensors['layers.1.ffn.upp.weight'] = value
    elif kind == 'slot itself':
        tensors['layers.1.ffn'] = value
    elif kind == 'nan':
        tensors[key] = value.clone().fill_(float('nan'))
    elif kind == 'inf':
        tensors[key] = value.clone().index_fill(
            0, torch.tensor(1), float('inf'))
    elif kind in ('float16', 'float64', 'bfloat16', 'uint8'):
        tensors[key] = value.to(getattr(torch, kind))
    elif kind == 'dims':
        for name in [n for n in tensors if n.startswith('layers.1.ffn.')]:
            tensors[name] = tensors[name][..., :2].contiguous()
        tensors[key] = value[:2].contiguous()
    elif kind == 'no slot':
        for name in [n for n in tensors if n.startswith('layers.1.ffn.')]:
            del tensors[name]
    return tensors


BROKEN = [
    ('slot', 'belongs to no slot of the card'),
    ('param', 'have different parameters'),
    ('slot itself', 'belongs to no slot of the card'),
    ('nan', "'layers.1.ffn.up.weight' holds NaN or infinity"),
    ('inf', "'layers.1.ffn.up.weight' holds NaN or infinity"),
    ('float16', 'has the dtype torch.float16; modules are kept in float32'),
    ('float64', 'has the dtype torch.float64'),
    ('bfloat16', 'has the dtype torch.bfloat16'),
    ('uint8', 'has the dtype torch.uint8'),
    ('dims', "no tensor of slot 'layers.1.ffn' has an axis of its dims, 6"),
    ('no slot', "slot 'layers.1.ffn' has no tensors"),
]


@pytest.mark.parametrize('kind, reason', BROKEN)
def test_what_contradicts_the_card_is_not_read(zoo, forge, kind, reason):
    forge(zoo, save(break_(zoo.load('m')[1], kind)))
    with pytest.raises(ZooError, match=reason) as caught:
        zoo.load('m')
    assert zoo.verify('m') == [str(caught.value)]


@pytest.mark.parametrize('kind, reason', BROKEN)
def test_what_contradicts_the_card_is_not_written(zoo, make_card,
                                                  make_tensors, kind, reason):
    before = zoo.load('m')
    with pytest.raises(ZooError, match=reason):
        zoo.save(make_card(), break_(make_tensors(), kind), overwrite=True)
    after = zoo.load('m')
    assert after[0] == before[0] and same(after[1], before[1])


def test_wrong_number_of_parameters_is_refused(zoo, forge):
    data = (zoo.root / 'm' / MODULE).read_bytes()
    forge(zoo, data, num_params=3)
    with pytest.raises(ZooError, match='the card promises 3 parameters'):
        zoo.load('m')


def test_tensors_of_nested_slots_belong_to_the_inner(tmp_path, make_card):
    slots = ['layers.0', 'layers.0.attn']
    tensors = {f'{s}.w': torch.ones(i + 3) for i, s in enumerate(slots)}
    card = make_card(slots=slots, dims=dict(zip(slots, (3, 4))))
    assert Zoo(tmp_path).save(card, tensors).num_params == 7


def test_card_with_wrong_sha_is_refused(zoo):
    path = zoo.root / 'm' / 'card.json'
    card = json.loads(path.read_text())
    path.write_text(json.dumps(dict(card, sha256='0' * 64)))
    with pytest.raises(ZooError, match='its sha256 is not the one on'):
        zoo.load('m')


def test_card_missing_broken_or_of_another_module(zoo):
    path = zoo.root / 'm' / 'card.json'
    text = path.read_text()
    path.write_text(text[:-20])
    with pytest.raises(ZooError, match='not valid JSON'):
        zoo.card('m')
    path.write_text(text.replace('"name": "m"', '"name": "n"'))
    with pytest.raises(ZooError, match="holds the card of 'n'"):
        zoo.card('m')
    path.unlink()
    with pytest.raises(ZooError, match='without its card'):
        zoo.card('m')
    assert zoo.names() == ['m'] and len(zoo.verify()) == 1
    (zoo.root / 'm' / MODULE).unlink()
    assert zoo.names() == []


def test_missing_module_file(zoo):
    (zoo.root / 'm' / MODULE).unlink()
    with pytest.raises(ZooError, match='is missing, but the card names it'):
        zoo.load('m')


def test_heads(zoo, make_card, make_tensors):
    with pytest.raises(ZooError, match='saved without a task head'):
        zoo.load_head('m')
    with pytest.raises(ZooError, match="head of module 'h'.*holds NaN"):
        zoo.save(
            make_card('h'), make_tensors(), dict(w=torch.tensor(
                float('nan'))))
    assert 'h' not in zoo
    zoo.save(make_card('h'), make_tensors(), dict(w=torch.ones(2).half()))
    assert zoo.load_head('h')['w'].dtype == torch.float16
    path = zoo.root / 'h' / 'head.safetensors'
    path.write_bytes(path.read_bytes()[:-1] + b'x')
    with pytest.raises(ZooError, match='head.safetensors.*is damaged'):
        zoo.load_head('h')
    assert len(zoo.verify('h')) == 1 and zoo.load('h')[0].name == 'h'
    # an overwrite without a head leaves no old head behind
    zoo.save(make_card('h'), make_tensors(), overwrite=True)
    assert not path.exists() and zoo.verify() == []


# ------------------------------------------------------- names and changes


def test_unknown_module_suggests_near_names(zoo, make_card, make_tensors):
    for name in ('coco_v1', 'potsdam'):
        zoo.save(make_card(name), make_tensors())
    with pytest.raises(ZooError, match="no module 'coco_v2'; did you mean "
                       r'coco_v1\?'):
        zoo.load('coco_v2')
    with pytest.raises(ZooError, match='it holds: coco_v1, m, potsdam'):
        zoo.remove('zzz')
    with pytest.raises(ZooError, match='the directory does not exist'):
        Zoo(zoo.root / 'none').load('m')


@pytest.mark.parametrize('name', ['../m', '..', '/etc', 'm/', '.m.old', ''])
def test_no_path_escapes_the_root(zoo, tmp_path, name):
    shutil.copytree(zoo.root / 'm', tmp_path / 'm')
    for call in (zoo.card, zoo.load, zoo.load_head, zoo.remove, zoo.verify,
                 lambda n: zoo.add(tmp_path / 'm', n or '/')):
        with pytest.raises(ZooError, match='cannot name a module'):
            call(name)
    assert name not in zoo and (tmp_path / 'm' / MODULE).exists()


def test_card_of_a_stranger_cannot_escape(zoo, tmp_path):
    path = zoo.root / 'm' / 'card.json'
    path.write_text(path.read_text().replace('"name": "m"',
                                             '"name": "../../up"'))
    with pytest.raises(ZooError, match='cannot name a module'):
        Zoo(tmp_path / 'a' / 'zoo').add(zoo.root / 'm')
    assert not (tmp_path / 'up').exists()


def test_overwriting_needs_to_be_asked_for(zoo, make_card, make_tensors):
    before = zoo.load('m')[1]
    with pytest.raises(ZooError, match="already has a module 'm'"):
        zoo.save(make_card(), make_tensors(3))
    assert same(zoo.load('m')[1], before)
    zoo.save(make_card(version='2'), make_tensors(3), overwrite=True)
    card, after = zoo.load('m')
    assert card.version == '2' and same(after, make_tensors(3))


def test_add_one_and_all(zoo, tmp_path, make_card, make_tensors):
    zoo.save(make_card('n'), make_tensors(2), dict(w=torch.ones(1)))
    other = Zoo(tmp_path / 'other')
    assert other.add(zoo.root / 'm', 'renamed') == ['renamed']
    assert same(other.load('renamed')[1], zoo.load('m')[1])
    assert other.add(zoo.root) == ['m', 'n']
    assert other.names() == ['m', 'n', 'renamed'] and other.verify() == []
    assert same(other.load_head('n'), zoo.load_head('n'))
    with pytest.raises(ZooError, match='holds 2 modules'):
        other.add(zoo.root, 'x')
    with pytest.raises(ZooError, match="already has a module 'n'"):
        other.add(zoo.root / 'n')
    other.remove('m')
    assert other.add(zoo.root) == ['m', 'n']  # the very same n is there
    assert other.names() == ['m', 'n', 'renamed']
    (tmp_path / 'empty').mkdir()
    for nothing in ('empty', 'absent'):
        with pytest.raises(ZooError):
            other.add(tmp_path / nothing)


def test_add_of_a_broken_module_adds_the_others(zoo, tmp_path, make_card,
                                                make_tensors):
    zoo.save(make_card('n'), make_tensors())
    path = zoo.root / 'n' / MODULE
    path.write_bytes(path.read_bytes()[:-1])
    other = Zoo(tmp_path / 'other')
    with pytest.raises(ZooError, match='is damaged'):
        other.add(zoo.root / 'n')
    assert not other.root.exists()
    with pytest.warns(UserWarning, match='^n: .*is damaged'):
        assert other.add(zoo.root) == ['m']
    zoo.remove('m')
    with pytest.raises(ZooError, match='None of the 1 modules.*is damaged'):
        other.add(zoo.root)


def test_remove(zoo, make_card, make_tensors):
    zoo.save(make_card('n'), make_tensors())
    zoo.remove('m')
    assert zoo.names() == ['n'] and 'm' not in zoo
    assert not (zoo.root / 'm').exists()


def test_linked_module_is_removed_and_its_target_kept(zoo, tmp_path):
    os.symlink(zoo.root / 'm', tmp_path / 'm')
    links = Zoo(tmp_path)
    assert links.load('m')[0].name == 'm'
    links.remove('m')
    assert 'm' not in links and zoo.verify() == [] and 'm' in zoo


def test_changes_do_not_look_at_other_modules(zoo, make_card, make_tensors,
                                              tmp_path, monkeypatch):
    for i in range(5):
        (zoo.root / f'broken{i}').mkdir()
        (zoo.root / f'broken{i}' / 'card.json').write_text('{')
    shutil.copytree(zoo.root / 'm', tmp_path / 'm')
    opened = []
    for name in ('listdir', 'scandir', 'open', 'stat'):

        def spy(path='.', *args, _call=getattr(os, name), **kwargs):
            opened.append(str(path))
            return _call(path, *args, **kwargs)

        monkeypatch.setattr(os, name, spy)
    zoo.save(make_card('n'), make_tensors())
    zoo.save(make_card('n'), make_tensors(1), overwrite=True)
    zoo.add(tmp_path / 'm', 'o')
    zoo.remove('n')
    zoo.load('o')
    assert str(zoo.root / 'n') in opened
    assert not any('broken' in path for path in opened)
    zoo.verify()
    assert any('broken' in path for path in opened)


# ------------------------------------------------------------------- trunk


def test_trunk_must_fit(zoo, make_trunk, monkeypatch):
    card = zoo.card('m')
    zoo.check_trunk(card, make_trunk(num_positions=9, final_norm=False))
    zoo.check_trunk(card, make_trunk(), dims=card.dims)
    with pytest.raises(ZooError, match='the weights in its slots differ'
                       ".*'made by hand'"):
        zoo.check_trunk(card, make_trunk(seed=1))
    with pytest.raises(ZooError, match="'layers.1.ffn' has the dims 8, and "
                       'the module was made for 6'):
        zoo.check_trunk(card, make_trunk(), {**card.dims, 'layers.1.ffn': 8})
    short = make_trunk()
    del short.layers[1]
    with pytest.raises(ZooError, match="no submodule 'layers.1.attn'"):
        zoo.check_trunk(card, short)

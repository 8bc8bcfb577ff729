# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Every reader ends in one of our errors, soon, and in little memory."""

import json
import warnings
from pathlib import Path
from typing import Iterator

import mmpretrain.models  # noqa: F401 (its time is no reader's)
import pytest
import torch
from _hostile import JSON_FILES, TENSOR_FILES, judged, odd_json
from _readers import NOTES, TENSORS, Reader
from safetensors.torch import load, save

from vim_mm.interchange.trunks import ConversionError, convert_trunk
from vim_mm.zoo import ZooError


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Fields that are not known are ignored with one."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


def read(reader: Reader, content: bytes) -> str:
    """What is wrong with how a reader ended."""
    reader.write(content)
    with judged(len(content)) as verdict:
        reader.read()
    return verdict.problem


@pytest.mark.parametrize('name', [*TENSORS, *NOTES])
def test_what_is_good_is_read(name: str, tmp_path: Path) -> None:
    reader = {**TENSORS, **NOTES}[name](tmp_path)
    reader.read()
    reader.write(reader.good)
    reader.read()


@pytest.mark.parametrize('name', TENSORS)
def test_any_tensor_file_ends_in_our_error(name: str, tmp_path: Path) -> None:
    reader = TENSORS[name](tmp_path)
    problems = {
        what: read(reader, change(reader.good))
        for what, change in TENSOR_FILES.items()
    }
    assert not any(problems.values()), {k: v for k, v in problems.items() if v}
    reader.write(reader.good)
    reader.read()


@pytest.mark.parametrize('name', NOTES)
def test_any_notes_end_in_our_error(name: str, tmp_path: Path) -> None:
    reader = NOTES[name](tmp_path)
    contents = dict(JSON_FILES)
    # `make reliability` takes all of them
    some = list(odd_json(json.loads(reader.good)))[::3]
    contents.update(
        (what, json.dumps(content).encode()) for what, content in some)
    problems = {
        what: read(reader, content)
        for what, content in contents.items()
    }
    assert not any(problems.values()), {k: v for k, v in problems.items() if v}
    reader.write(reader.good)
    reader.read()


# -------------------------------------------- what would take a lot of memory


@pytest.mark.parametrize('adapter', [
    dict(hidden_dims=1 << 20),
    dict(hidden_dims=1 << 40),
    dict(type='ConvPass', groups=1 << 20, hidden_dims=1 << 20),
    dict(type='LoRA', rank=1 << 30),
    dict(type='BottleneckAdapter', hidden_dims=1 << 30),
    dict(type='SideLadder', hidden_dims=1 << 20),
    dict(hidden_dims=4, scale='a'),
    dict(hidden_dims=4, scale=None),
    dict(hidden_dims=4, drop_rate='a'),
    dict(hidden_dims=4, init_cfg=dict(type='Pretrained', checkpoint='x')),
    dict(hidden_dims=4, dims=3),
    dict(type='LoRA', alpha='a'),
    dict(type='BottleneckAdapter', act=[]),
], ids=str)
def test_an_adapter_that_its_weights_do_not_fit(tmp_path: Path,
                                                adapter: dict) -> None:
    reader = NOTES['card'](tmp_path)
    card = json.loads(reader.good)
    adapter = {'type': 'ConvPass', **adapter}
    card.update(adapter=adapter, kind=adapter['type'])
    reader.write(json.dumps(card).encode())
    with judged() as verdict:
        reader.read()
    assert isinstance(verdict.error, ZooError) and not verdict.problem
    assert 'cannot be used' in str(verdict.error)


def test_dims_of_a_card_that_its_weights_do_not_have(tmp_path: Path) -> None:
    reader = NOTES['card'](tmp_path)
    card = json.loads(reader.good)
    card['dims'] = dict.fromkeys(card['dims'], 1 << 40)
    reader.write(json.dumps(card).encode())
    with judged() as verdict:
        reader.read()
    assert isinstance(verdict.error, ZooError) and not verdict.problem


@pytest.mark.parametrize('size', [
    dict(num_layers=100_000), dict(embed_dims=1_000_000),
    dict(feedforward_channels=1_000_000, num_layers=5000)], ids=str)
@pytest.mark.parametrize('name', ['recipe', 'moe_notes'])
def test_a_config_in_a_file_that_asks_for_much(tmp_path: Path, name: str,
                                               size: dict) -> None:
    reader = NOTES[name](tmp_path)
    notes = json.loads(reader.good)
    cfg = notes['backbone']['trunk'] if name == 'moe_notes' else notes
    cfg['arch'].update(size)
    reader.write(json.dumps(notes).encode())
    with judged() as verdict:
        reader.read()
    assert verdict.error and not verdict.problem


@pytest.mark.parametrize('old, new', [
    ('blocks.0.', 'blocks.999999.'),
    ('blocks.0.ls1', 'blocks.7.ls1'),
    ('blocks.0.', f'blocks.{"9" * 400}.'),
])
def test_blocks_are_numbered_from_zero(tmp_path: Path, old: str,
                                       new: str) -> None:
    reader = TENSORS['published_trunk'](tmp_path)
    tensors = {
        key.replace(old, new): value
        for key, value in load(reader.good).items()
    }
    if old == 'blocks.0.':  # one more than there are
        tensors.update(load(reader.good))
    reader.write(save(tensors))
    with judged() as verdict:
        convert_trunk('dinov2', tmp_path / 'theirs.safetensors',
                      tmp_path / 'out.safetensors')
    assert isinstance(verdict.error, ConversionError) and not verdict.problem


def test_towers_are_few(tmp_path: Path) -> None:
    good = load(TENSORS['published_trunk'](tmp_path).good)
    tensors = {
        f'{tower}.{key}': value.clone()
        for tower in range(17) for key, value in good.items()
    }
    (tmp_path / 'x.safetensors').write_bytes(save(tensors))
    with pytest.raises(ConversionError, match='holds 17 towers'):
        convert_trunk('dinov2', tmp_path / 'x.safetensors',
                      tmp_path / 'out.safetensors')


@pytest.mark.parametrize('family, names, number, said', [
    ('timm-davit', 'stages.0.blocks.{}.0.attn.x', 99, 'more than 300 parts'),
    ('dinov2', 'blocks.{}.norm1.weight', 99, 'more than 300 parts'),
    ('dinov2', '{}.blocks.0.ls1.gamma', 9, 'holds 10 towers'),
    ('timm-vit', '{}.blocks.0.attn.qkv.weight', 9, 'holds 10 towers')])
def test_parts_and_towers_of_many_tensors(
        family: str, names: str, number: int, said: str, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is bounded, however many tensors a file has."""
    monkeypatch.setattr('vim_mm.utils.meta.PARTS', 300)
    monkeypatch.setattr('vim_mm.utils.tensor_names.LOOKS', 200)
    tensors = {names.format(n): torch.ones(1) for n in range(number)}
    if family == 'timm-davit':
        tensors['stem.conv.weight'] = torch.ones(32, 3, 7, 7)
    else:
        tensors.update(load(TENSORS['published_trunk'](tmp_path).good))
    (tmp_path / 'x.safetensors').write_bytes(save(tensors))
    with pytest.raises(ConversionError, match=said):
        convert_trunk(family, tmp_path / 'x.safetensors',
                      tmp_path / 'out.safetensors')


def test_ranks_of_an_adapter_are_alike(tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch
                                       ) -> None:
    reader = TENSORS['peft_adapter'](tmp_path)
    tensors = load(reader.good)
    name = next(key for key in tensors if 'lora_A' in key)
    up = name.replace('lora_A', 'lora_B')
    tensors[name] = torch.ones(60, tensors[name].shape[1])
    tensors[up] = torch.ones(len(tensors[up]), 60)
    reader.write(save(tensors))
    reader.read()
    monkeypatch.setattr('vim_mm.interchange.peft_changes.SPARE', -50_000)
    with pytest.raises(ZooError, match='Its ranks go up to 60'):
        reader.read()

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A release is whole and what its card says, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from _upstream import CARD, SIZES, auto_encoder, release

from vim_mm.models.generators import (UpstreamCard, load_upstream_release,
                                      read_upstream_card,
                                      save_upstream_release)
from vim_mm.models.generators.upstream_release import PARTS
from vim_mm.utils.files import sha256
from vim_mm.zoo import ZooError
from vim_mm.zoo.files import pack


def test_it_computes_what_was_trained(tmp_path: Path) -> None:
    model = auto_encoder().eval()
    card = save_upstream_release(
        model, tmp_path / 'r', num_images=3, leak=dict(membership_auc=.5),
        **CARD)
    loaded = load_upstream_release(tmp_path / 'r')
    images = torch.rand(2, 3, 10, 14)
    assert torch.equal(loaded(images), model(images))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert read_upstream_card(tmp_path / 'r') == card
    assert card.architecture == SIZES
    assert card.leak == dict(membership_auc=.5)


def test_it_holds_nothing_else(tmp_path: Path) -> None:
    """No moving averages of the images, no path."""
    release(tmp_path / 'r')
    files = {path.name for path in (tmp_path / 'r').iterdir()}
    assert files == {'card.json', *(f'{part}.safetensors' for part in PARTS)}
    tensors = load_tensors(tmp_path / 'r' / 'codebook.safetensors')
    assert list(tensors) == ['codebook']
    text = (tmp_path / 'r' / 'card.json').read_text()
    assert str(tmp_path) not in text


def load_tensors(path: Path) -> dict:
    from safetensors.torch import load_file
    return load_file(path)


def flip_a_byte(folder: Path) -> None:
    path = folder / 'codebook.safetensors'
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def write_part(folder: Path, part: str, tensors: dict) -> None:
    """Exchange a part, card and all."""
    data = pack(tensors)
    (folder / f'{part}.safetensors').write_bytes(data)
    edit_card(folder, lambda card: card['sha256'].update(
        {part: sha256(data)}))


def edit_card(folder: Path, edit: Callable[[dict], Any]) -> None:
    path = folder / 'card.json'
    card = json.loads(path.read_text())
    edit(card)
    path.write_text(json.dumps(card))


def codes(**kwargs) -> Callable[[Path], None]:
    return lambda folder: write_part(folder, 'codebook', dict(**kwargs))


def card(**kwargs) -> Callable[[Path], None]:
    return lambda folder: edit_card(folder, lambda c: c.update(kwargs))


DAMAGE = {
    'a flipped bit': (flip_a_byte, 'damaged or was exchanged'),
    'a part cut short': (lambda f: (f / 'decoder.safetensors').write_bytes(
        (f / 'decoder.safetensors').read_bytes()[:-9]), 'damaged'),
    'no codebook': (lambda f: (f / 'codebook.safetensors').unlink(),
                    "codebook.safetensors' is missing"),
    'no card': (lambda f: (f / 'card.json').unlink(), 'holds no card.json'),
    'a card cut short': (lambda f: (f / 'card.json').write_text('{"na'),
                         'not valid JSON'),
    'codes that are no numbers': (codes(
        codebook=torch.full((16, 4), float('nan'))), 'NaN or infinity'),
    'too few codes': (codes(codebook=torch.zeros(15, 4)),
                      r'\(15, 4\) and should be float32 of \(16, 4\)'),
    'codes in half precision': (codes(
        codebook=torch.zeros(16, 4).half()), 'float16'),
    'other tensors': (codes(a=torch.zeros(2)), "'a' .* should be absent"),
    'an encoder of other sizes': (
        lambda f: write_part(f, 'encoder', auto_encoder(
            channels=12).encoder.state_dict()), 'encoder.safetensors'),
    'a decoder as encoder': (
        lambda f: write_part(f, 'encoder',
                             auto_encoder().decoder.state_dict()),
        'encoder.safetensors'),
    'another architecture': (card(architecture=dict(SIZES, channels=4)),
                             'should be'),
    'an architecture of words': (card(architecture=dict(channels='wide')),
                                 "channels='wide'"),
    'an unknown architecture': (card(architecture=dict(gan=1)), 'gan=1'),
    'a sum for two files': (card(sha256=dict(encoder='a' * 64)), 'sha256'),
    'no licence': (card(licence=''), "lacks 'licence'"),
    'a licence of blanks': (card(licence=' '), "'licence' is empty"),
    'no images': (card(num_images=0), "'num_images' is 0"),
    'a card of tomorrow': (card(format_version=2), 'format_version 2'),
}


@pytest.mark.parametrize('what', DAMAGE)
def test_damage_is_refused(what: str, tmp_path: Path) -> None:
    release(tmp_path / 'r')
    damage, words = DAMAGE[what]
    damage(tmp_path / 'r')
    with pytest.raises(ZooError, match=words) as caught:
        load_upstream_release(tmp_path / 'r')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['absent', 'file'])
def test_what_is_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(ZooError, match='name the folder'):
        load_upstream_release(tmp_path / name)


def test_a_release_is_not_replaced(tmp_path: Path) -> None:
    release(tmp_path / 'r', seed=0)
    before = read_upstream_card(tmp_path / 'r')
    with pytest.raises(ZooError, match='is there already'):
        release(tmp_path / 'r', seed=1)
    assert read_upstream_card(tmp_path / 'r') == before


@pytest.mark.parametrize('full_at', range(4))
def test_a_full_disk_leaves_nothing(full_at: int, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def write(path: Path, *args: Any, **kwargs: Any) -> None:
        if len(written) == full_at:
            raise OSError(28, 'No space left on device')
        written.append(path)

    monkeypatch.setattr(Path, 'write_bytes', write)
    monkeypatch.setattr(Path, 'write_text', write)
    with pytest.raises(ZooError, match='cannot be written.*No space left'):
        release(tmp_path / 'r')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('part', ['encoder', 'decoder', 'quantizer'])
def test_what_diverged_is_not_published(part: str, tmp_path: Path) -> None:
    model = auto_encoder()
    for value in getattr(model, part).state_dict().values():
        if value.is_floating_point():
            value.fill_(float('inf'))
    with pytest.raises(ZooError, match='NaN or infinity'):
        save_upstream_release(model, tmp_path / 'r', num_images=3, **CARD)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('fields, words', [
    (dict(name='a/b'), 'cannot name'),
    (dict(data=' '), "'data' is empty"),
    (dict(num_images=0), 'num_images'),
    (dict(num_images='3'), 'right type'),
    (dict(leak=dict(auc=float('nan'))), 'cannot be written as JSON'),
])
def test_a_card_that_says_nothing(fields: dict, words: str) -> None:
    with pytest.raises(ZooError, match=words):
        UpstreamCard(**dict(CARD, num_images=3, architecture={}) |
                     fields)

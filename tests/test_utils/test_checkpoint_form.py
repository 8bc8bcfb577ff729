# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a checkpoint may hold, before and after it is read."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _hostile import IN_PLACE, ODD_VALUES, judged, put
from mmengine.runner import CheckpointLoader
from torch import Tensor

from vim_mm.utils import checkpoint_form
from vim_mm.utils.checkpoint import CheckpointError
from vim_mm.utils.checkpoint_form import check_whole, state_of

STATE = {'module.a': torch.ones(2, 3), 'b': torch.tensor([1, 2])}


def load(path: Path) -> Any:
    return CheckpointLoader.load_checkpoint(str(path), 'cpu', 'silent')


@pytest.mark.parametrize('what', IN_PLACE)
def test_only_regular_files_are_read(tmp_path: Path, what: str) -> None:
    put(tmp_path / 'x.pth', what)
    with judged() as verdict:
        load(tmp_path / 'x.pth')
    assert verdict.error and not verdict.problem


@pytest.mark.parametrize('key', ['state_dict', 'ema_state_dict', 'meta',
                                 'message_hub', 'meta.dataset_meta',
                                 'state_dict.b'])
@pytest.mark.parametrize('name', ODD_VALUES)
def test_parts_of_the_wrong_form(tmp_path: Path, key: str, name: str) -> None:
    content = dict(state_dict=dict(STATE), meta=dict(), message_hub=dict())
    inner, value = content, ODD_VALUES[name]
    *path, last = key.split('.')
    for part in path:
        inner = inner[part]
    inner[last] = value
    torch.save(content, tmp_path / 'x.pth')
    fine = value is None and key in ('meta', 'message_hub',
                                     'meta.dataset_meta')
    fine = fine or (isinstance(value, dict) and key != 'state_dict.b'
                    and ('state' not in key or not value))
    with judged() as verdict:
        load(tmp_path / 'x.pth')
    assert not verdict.problem
    assert isinstance(verdict.error, CheckpointError) != fine


@pytest.mark.parametrize('value', [
    torch.ones(2, 2).to_sparse(),
    torch.ones(2, device='meta'),
    torch.quantize_per_tensor(torch.ones(2), .1, 0, torch.qint8),
    torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
    np.ones(2),
    [torch.ones(1)],
], ids=['sparse', 'meta', 'quantized', 'nested', 'array', 'list'])
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path,
                                            value: Any) -> None:
    torch.save(dict(state_dict=dict(STATE, x=value)), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError):
        load(tmp_path / 'x.pth')


@pytest.mark.parametrize('name', [3, None, ('a', )])
def test_odd_names_are_refused(tmp_path: Path, name: Any) -> None:
    torch.save(dict(state_dict={**STATE, name: torch.ones(1)}),
               tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='with the name'):
        load(tmp_path / 'x.pth')


@pytest.mark.parametrize('place', ['state_dict', 'model', 'other'])
def test_long_names_are_refused(tmp_path: Path, place: str) -> None:
    torch.save({place: {'a.' * 257: torch.ones(1)}}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='more than 512 characters'):
        load(tmp_path / 'x.pth')


def test_tensors_larger_than_their_file_are_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide: Tensor = torch.ones(1).expand(1 << 16)
    for place in (dict(state_dict=dict(a=wide)), dict(a=[dict(b=(wide, ))])):
        torch.save(place, tmp_path / 'x.pth')
        load(tmp_path / 'x.pth')
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_form, 'SPARE', 0)
            with pytest.raises(CheckpointError, match='262,144 bytes in'):
                load(tmp_path / 'x.pth')


def test_archives_that_unpack_to_more_are_refused(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_form, 'SPARE', 0)
    path = tmp_path / 'x.pth'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(1 << 16))
    with pytest.raises(CheckpointError, match='unpacks to more'):
        load(path)
    torch.save(dict(state_dict=STATE), path)
    load(path)
    monkeypatch.setattr(checkpoint_form, 'FILES', 3)
    with pytest.raises(CheckpointError, match='holds . files'):
        load(path)


def nested(levels: int, width: int) -> list:
    """Lists of one list, so many times each."""
    value: list = [1.]
    for _ in range(levels):
        value = [value] * width
    return value


def circle(kind: type) -> Any:
    holder: Any = kind()
    inner = [torch.ones(1), dict(a=holder)]
    holder.update(a=inner) if kind is dict else holder.append(inner)
    return holder


@pytest.mark.parametrize('value, said', [
    (circle(list), 'holds itself'), (circle(dict), 'holds itself'),
    (nested(100, 1), 'on 65 levels'), (nested(40, 2), ' values on '),
    ({'a': (nested(9, 10), )}, ' values on ')], ids=lambda value: None)
@pytest.mark.parametrize('place', ['state_dict', 'optimizer', 'meta', 'x'])
def test_what_no_reader_would_come_to_the_end_of(tmp_path: Path, value: Any,
                                                 said: str,
                                                 place: str) -> None:
    content = {'state_dict': dict(STATE), place: dict(STATE, a=value)}
    torch.save(content, tmp_path / 'x.pth')
    with judged() as verdict:
        load(tmp_path / 'x.pth')
    assert isinstance(verdict.error, CheckpointError) and not verdict.problem
    assert said in str(verdict.error)


def test_what_is_held_twice_is_fine(tmp_path: Path) -> None:
    shared = [1, 2, [3]]
    torch.save(dict(state_dict=STATE, a=[shared, (shared, shared)],
                    b=nested(50, 1), c=shared), tmp_path / 'x.pth')
    assert load(tmp_path / 'x.pth')['a'][1] == (shared, shared)


def test_weights_by_name() -> None:
    assert list(state_of(dict(state_dict=STATE), 'f')) == ['a', 'b']
    assert list(state_of(STATE, 'f')) == ['a', 'b']
    assert list(state_of(dict(STATE, epoch=3), 'f')) == ['a', 'b']
    extra = dict(state_dict={**STATE, 'c._extra_state': 3})
    assert state_of(extra, 'f')['c._extra_state'] == 3
    for bad in (3, None, [], [STATE], dict(), dict(state_dict={}),
                dict(state_dict=3), {3: torch.ones(1)}, dict(a=1)):
        for check in (check_whole, state_of):
            with pytest.raises(CheckpointError, match='f holds no weights'):
                check(bad, 'f')

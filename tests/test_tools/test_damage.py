# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A checkpoint with a changed bit is neither tested nor gone on from."""

import random
from pathlib import Path

import pytest
import torch
from _damage import flipped, tool, trained, uses

from _tiny import first_of
from vim_mm.engine.hooks import guard_hook
from vim_mm.utils.checkpoint import CheckpointError

USES = list(uses(Path()))


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('damage')
    trained(path)
    return path


@pytest.mark.parametrize('use', first_of(USES))
def test_a_flipped_bit_is_refused(folder: Path, use: str) -> None:
    """`make reliability` flips more of them."""
    path, command = uses(folder)[use]
    rng = random.Random(0)
    for _ in range(2):
        with flipped(path, rng), pytest.raises(
                CheckpointError, match=f'{path.name} is damaged'):
            tool(*command)
    tool(*command)


@pytest.mark.parametrize('use', first_of(['test', 'resume', 'start']))
def test_a_file_of_another_program_is_taken_with_a_line(
        folder: Path, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, command = uses(folder)[use]
    told, content = [], path.read_bytes()
    monkeypatch.setattr(guard_hook, 'print_log',
                        lambda said, **kwargs: told.append(said))
    torch.save(torch.load(path, weights_only=False), path)
    try:
        tool(*command)
    finally:
        path.write_bytes(content)
    assert told == [f'{path} has no checksum, as files of other programs: a '
                    'changed bit in it would not be noticed.']
    told.clear()
    tool(*command)
    assert not told

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A module as one tar: the same on both sides, and nothing else."""

import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Callable, Iterator

import pytest
import torch

from vim_mm.utils.files import sha256
from vim_mm.zoo import ModuleCard, Zoo, ZooError, parcel


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = Zoo(tmp_path / 'zoo')
    card = ModuleCard(
        name='boats',
        kind='ConvPass',
        adapter=dict(type='ConvPass'),
        slots=['a.b'],
        dims={'a.b': 3},
        trunk=dict(type='Net', fingerprint='f' * 64),
        licence='CC BY 4.0')
    zoo.save(card, {'a.b.w': torch.ones(3)}, head={'head.w': torch.ones(2)})
    return zoo


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The folder, served to this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def contents(zoo: Zoo, name: str) -> dict:
    return {path.name: path.read_bytes()
            for path in (zoo.root / name).iterdir()}


def test_it_comes_back_as_it_was(zoo: Zoo, site: str, tmp_path: Path) -> None:
    path = tmp_path / 'sub' / 'boats.tar'
    digest = zoo.push('boats', path)
    assert digest == sha256(path)
    sources = (str(path), path.as_uri(), f'{site}/sub/boats.tar')
    for index, source in enumerate(sources):
        other = Zoo(tmp_path / f'other{index}')
        assert other.pull(source, digest.upper()) == ('boats', digest)
        assert contents(other, 'boats') == contents(zoo, 'boats')
    assert zoo.pull(str(path), name='ships') == ('ships', digest)
    assert zoo.card('ships').licence == 'CC BY 4.0'
    assert zoo.load_head('ships')['head.w'].tolist() == [1, 1]
    # equal modules, equal bytes
    assert Zoo(tmp_path / 'other0').push('boats', tmp_path / 'x.tar') == digest


def test_a_tar_of_the_folder_by_hand_will_do(zoo: Zoo,
                                             tmp_path: Path) -> None:
    with tarfile.open(tmp_path / 'hand.tar', 'w') as tar:
        tar.add(zoo.root / 'boats', './boats')
    other = Zoo(tmp_path / 'other')
    other.pull(str(tmp_path / 'hand.tar'))
    assert contents(other, 'boats') == contents(zoo, 'boats')


def test_refusals_of_a_zoo(zoo: Zoo, site: str, tmp_path: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'boats.tar'
    with pytest.raises(ZooError, match="no module 'boat'; did you mean"):
        zoo.push('boat', path)
    with pytest.raises(ZooError, match='does not end in .tar'):
        zoo.push('boats', tmp_path / 'boats.zip')
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ZooError, match='cannot be written'):
        zoo.push('boats', tmp_path / 'file' / 'boats.tar')
    zoo.push('boats', path)
    with pytest.raises(ZooError, match="already has a module 'boats'"):
        zoo.pull(str(path))
    with pytest.raises(ZooError, match='another file than was meant'):
        zoo.pull(str(path), 'a' * 64, name='ships')
    with pytest.raises(ZooError, match='cannot name a module'):
        zoo.pull(str(path), name='../ships')
    with pytest.raises(FileNotFoundError, match='no file'):
        zoo.pull(str(tmp_path / 'nothing.tar'))
    with pytest.raises(ZooError, match='cannot be read .*not found'):
        zoo.pull(f'{site}/nothing.tar')
    for source in ('ftp://x/boats.tar', 'data://x'):
        with pytest.raises(ZooError, match='URL of file, http, https'):
            zoo.pull(source)
    with pytest.raises(ZooError, match='cannot be read'):
        zoo.pull('http://127.0.0.1:1/boats.tar')
    monkeypatch.setattr(parcel, 'TAR_LIMIT', 1000)
    with pytest.raises(ZooError, match='more than 1,000 bytes'):
        zoo.pull(str(path), name='ships')
    assert zoo.names() == ['boats']


def tar_of(*members: tuple, **settings: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=settings.get('mode', 'w')) as tar:
        for name, data, *change in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in (change[0] if change else {}).items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def spoiled(zoo: Zoo, change: Callable[[dict], object]) -> bytes:
    files = contents(zoo, 'boats')
    change(files)
    return tar_of(*((f'boats/{name}', data) for name, data in files.items()))


LINK = dict(type=tarfile.SYMTYPE, linkname='/etc/hostname')
ODD = [
    ('an empty file', lambda zoo: b'', 'no uncompressed tar'),
    ('text', lambda zoo: b'hello ' * 500, 'no uncompressed tar'),
    ('no member', lambda zoo: tar_of(), 'holds nothing in 0 folders'),
    ('compressed', lambda zoo: tar_of(('b/card.json', b'{}'), mode='w:gz'),
     'no uncompressed tar'),
    ('a path that leads out', lambda zoo: tar_of(('../card.json', b'{}')),
     r"holds '../card.json'"),
    ('an absolute path', lambda zoo: tar_of(('/card.json', b'{}')),
     "holds '/card.json'"),
    ('a deep path', lambda zoo: tar_of(('a/b/card.json', b'{}')),
     "holds 'a/b/card.json'"),
    ('no folder', lambda zoo: tar_of(('card.json', b'{}')),
     "holds 'card.json'"),
    ('another file', lambda zoo: tar_of(('b/x.py', b'x')), "holds 'b/x.py'"),
    ('a link', lambda zoo: tar_of(('b/card.json', b'', LINK)),
     "holds 'b/card.json'"),
    ('a hard link', lambda zoo: tar_of(
        ('b/card.json', b'', dict(LINK, type=tarfile.LNKTYPE))),
     "holds 'b/card.json'"),
    ('a device', lambda zoo: tar_of(
        ('b/card.json', b'', dict(type=tarfile.CHRTYPE))),
     "holds 'b/card.json'"),
    ('one file twice', lambda zoo: tar_of(
        ('b/card.json', b'{}'), ('b/card.json', b'{}')),
     "holds 'b/card.json'"),
    ('two modules', lambda zoo: tar_of(
        ('a/card.json', b'{}'), ('b/module.safetensors', b'x')),
     'in 2 folders'),
    ('half a tar', lambda zoo: spoiled(zoo, lambda _: None)[:1500],
     'is no (valid )?module|not whole'),
    ('no tensors', lambda zoo: spoiled(
        zoo, lambda files: files.pop('module.safetensors')),
     'in 1 folders'),
    ('other tensors', lambda zoo: spoiled(
        zoo, lambda files: files.update({'module.safetensors': b'x'})),
     'holds no valid module. .*sha256 is not the one on the card'),
    ('a lost head', lambda zoo: spoiled(
        zoo, lambda files: files.pop('head.safetensors')),
     'holds no valid module. .*head.safetensors'),
    ('no card', lambda zoo: spoiled(
        zoo, lambda files: files.update({'card.json': b'[]'})),
     'holds no valid module. .*JSON object'),
]


@pytest.mark.parametrize('name,make,said', ODD, ids=[name for name, *_ in ODD])
def test_what_is_no_module_is_refused(name: str, make: Callable, said: str,
                                      zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / 'odd.tar'
    path.write_bytes(make(zoo))
    other = Zoo(tmp_path / 'deep' / 'other')
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(ZooError, match=said):
        other.pull(str(path))
    assert sorted(tmp_path.rglob('*')) == before


def test_members_have_limits(zoo: Zoo, tmp_path: Path,
                             monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.push('boats', tmp_path / 'boats.tar')
    monkeypatch.setitem(parcel.LIMITS, 'module.safetensors', 10)
    with pytest.raises(ZooError, match='10 are allowed'):
        zoo.pull(str(tmp_path / 'boats.tar'), name='ships')

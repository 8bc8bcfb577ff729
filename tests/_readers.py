# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""All that reads files: a good file of each kind, and how it is read."""

import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import torch
from _hostile import exchange, with_header
from _moe_tiny import write_moe
from _upstream import release
from safetensors.torch import save, save_file

from _tiny import add_modules, build_backbone, vit
from vim_mm.apis.generated_folder import GeneratedFolder
from vim_mm.datasets import View
from vim_mm.features.store import FeatureStore
from vim_mm.interchange import export_adapter, import_adapter
from vim_mm.interchange.trunks import FAMILIES, convert_trunk
from vim_mm.models.backbones.weights import load_trunk_weights
from vim_mm.models.generators import load_upstream_release
from vim_mm.models.moe import (load_adaptation, load_moe, read_moe,
                               save_adaptation)
from vim_mm.registry import MODELS
from vim_mm.report.evidence import usefulness
from vim_mm.report.routing import read_information
from vim_mm.utils.checkpoint import load_from_safetensors
from vim_mm.utils.files import sha256
from vim_mm.utils.manifest import (ANNOTATIONS, COPIES, IMAGES, LABELS,
                                   MANIFEST, check_files)
from vim_mm.zoo import Zoo, save_module

MODULE, HEAD, CARD = 'module.safetensors', 'head.safetensors', 'card.json'
SOURCE = dict(trunk='abc', dtype='float32')
WIDE = 64  # of a trunk that has a head of 64


@dataclass
class Reader:
    """Something that is read.

    Attributes:
        good (bytes): Content of the file that is read.
        write (Callable): Puts other content in its place; what vouches for
            the content by its hash then vouches for the new one.
        read (Callable): Reads it.
    """
    good: bytes
    write: Callable[[bytes], Any]
    read: Callable[[], Any]


def _at(path: Path, read: Callable[[], Any]) -> Reader:
    return Reader(path.read_bytes(), path.write_bytes, read)


def _zoo(folder: Path) -> tuple:
    """A zoo with the module 'm', and a backbone that it fits."""
    backbone = build_backbone(vit())
    add_modules(backbone, 'm')
    save_module(backbone, 'm', folder / 'zoo', dict(w=torch.ones(2)))
    bare = build_backbone(vit())
    bare.trunk.load_state_dict(backbone.trunk.state_dict())
    return Zoo(folder / 'zoo'), bare


def _module(folder: Path) -> Reader:
    zoo, bare = _zoo(folder)

    def read() -> Any:
        bare.load_modules(str(zoo.root), ['m'])
        bare.remove('m')

    path = zoo.root / 'm' / MODULE
    return Reader(path.read_bytes(),
                  lambda data: exchange(path.parent, MODULE, data, 'sha256'),
                  read)


def _head(folder: Path) -> Reader:
    zoo, _ = _zoo(folder)
    path = zoo.root / 'm' / HEAD
    return Reader(
        path.read_bytes(),
        lambda data: exchange(path.parent, HEAD, data, 'head_sha256'),
        lambda: zoo.load_head('m'))


def _card(folder: Path) -> Reader:
    reader = _module(folder)
    return _at(folder / 'zoo' / 'm' / CARD, reader.read)


def _peft_folder(folder: Path) -> Tuple[Path, Callable]:
    backbone = build_backbone(vit())
    backbone.add(
        'm', dict(type='vim_mm.LoRA', rank=2), r'layers\.\d+\.attn\.qkv')
    save_module(backbone, 'm', folder / 'lora')
    path = export_adapter(folder / 'lora', 'm', folder / 'peft', 'timm')
    trunk = backbone.trunk
    return path, lambda: import_adapter(
        path, folder / 'zoo', 'theirs', trunk, overwrite=True)


def _peft(folder: Path) -> Reader:
    path, read = _peft_folder(folder)
    return _at(path / 'adapter_model.safetensors', read)


def _peft_config(folder: Path) -> Reader:
    path, read = _peft_folder(folder)
    return _at(path / 'adapter_config.json', read)


def _trunk(folder: Path) -> Reader:
    trunk, path = MODELS.build(vit()), folder / 'trunk.safetensors'
    save_file(trunk.state_dict(), path)
    return _at(path, lambda: load_trunk_weights(trunk, str(path)))


def _recipe(folder: Path) -> Reader:
    """The config inside a trunk's file."""
    trunk, path = MODELS.build(vit()), folder / 'trunk.safetensors'

    def write(text: bytes) -> None:
        notes = dict(backbone=text.decode('utf-8', 'replace'))
        path.write_bytes(save(trunk.state_dict(), notes))

    good = json.dumps(vit()).encode()
    write(good)
    return Reader(good, write, lambda: load_trunk_weights(trunk, str(path)))


def _published(folder: Path, suffix: str = 'safetensors') -> Reader:
    """A published file, converted as all families."""
    path = folder / f'theirs.{suffix}'
    path.write_bytes(save(_dinov2()))

    def read() -> None:
        errors = []
        for family in FAMILIES:
            try:
                convert_trunk(family, path, folder / 'out.safetensors')
            except ValueError as error:
                errors.append(error)
        if len(errors) == len(FAMILIES):
            raise max(errors, key=lambda e: len(str(e)))

    return _at(path, read)


def _dinov2() -> Dict[str, torch.Tensor]:
    """Tensors in the names of DINOv2, of one block."""
    block = {
        'norm1.weight': (WIDE, ),
        'norm1.bias': (WIDE, ),
        'attn.qkv.weight': (3 * WIDE, WIDE),
        'attn.qkv.bias': (3 * WIDE, ),
        'attn.proj.weight': (WIDE, WIDE),
        'attn.proj.bias': (WIDE, ),
        'ls1.gamma': (WIDE, ),
        'norm2.weight': (WIDE, ),
        'norm2.bias': (WIDE, ),
        'mlp.fc1.weight': (WIDE, WIDE),
        'mlp.fc1.bias': (WIDE, ),
        'mlp.fc2.weight': (WIDE, WIDE),
        'mlp.fc2.bias': (WIDE, ),
        'ls2.gamma': (WIDE, )
    }
    shapes = {f'blocks.0.{name}': shape for name, shape in block.items()}
    shapes.update({
        'cls_token': (1, 1, WIDE),
        'pos_embed': (1, 5, WIDE),
        'patch_embed.proj.weight': (WIDE, 3, 4, 4),
        'patch_embed.proj.bias': (WIDE, ),
        'norm.weight': (WIDE, ),
        'norm.bias': (WIDE, )
    })
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def _moe(folder: Path) -> Reader:
    path = folder / 'moe.safetensors'
    write_moe(path)
    return _at(path, lambda: load_moe(str(path)))


def _moe_notes(folder: Path) -> Reader:
    """What a moe file says in its header."""
    path = folder / 'moe.safetensors'
    write_moe(path)
    good = path.read_bytes()

    def write(text: bytes) -> None:
        notes = dict(moe=text.decode('utf-8', 'replace'))
        path.write_bytes(
            with_header(good, lambda header: header.update(
                __metadata__=notes)))

    def read() -> None:
        read_moe(path)
        load_moe(str(path))

    size = int.from_bytes(good[:8], 'little')
    notes = json.loads(json.loads(good[8:8 + size])['__metadata__']['moe'])
    del notes['file_sha256']  # it is of the file with these very notes
    return Reader(json.dumps(notes).encode(), write, read)


def _adaptation(folder: Path) -> Tuple[Path, Callable]:
    base = folder / 'moe.safetensors'
    write_moe(base)
    adapted = load_moe(
        str(base),
        task='new',
        like='seg',
        train=['routers', 'experts'],
        experts=dict(num=1))
    save_adaptation(adapted, load_moe(str(base)), 'm', str(folder / 'zoo'))
    trunk = load_moe(str(base))
    return folder / 'zoo' / 'm', lambda: load_adaptation(
        deepcopy(trunk), str(folder / 'zoo'), 'm')


def _adapted(folder: Path) -> Reader:
    path, read = _adaptation(folder)
    return Reader((path / MODULE).read_bytes(),
                  lambda data: exchange(path, MODULE, data, 'sha256'), read)


def _adapted_card(folder: Path) -> Reader:
    path, read = _adaptation(folder)
    return _at(path / CARD, read)


def _release(folder: Path, part: str = 'encoder') -> Reader:
    path = Path(release(folder / 'release'))
    file = f'{part}.safetensors'
    return Reader((path / file).read_bytes(),
                  lambda data: exchange(path, file, data, f'sha256.{part}'),
                  lambda: load_upstream_release(path))


def _release_card(folder: Path) -> Reader:
    path = Path(release(folder / 'release'))
    return _at(path / CARD, lambda: load_upstream_release(path))


def _store_folder(folder: Path) -> Path:
    store = FeatureStore(folder / 'store', SOURCE)
    with store.writer() as writer:
        writer.add([View(f'{i}.png', 0, i) for i in range(4)],
                   torch.ones(4, 3))
    return store.root


def _shard(folder: Path) -> Reader:
    root = _store_folder(folder)
    shard, = root.glob('*.safetensors')
    good = shard.read_bytes()

    def write(data: bytes) -> None:
        for old in root.glob('*.safetensors'):
            old.unlink()
        (root / f'{sha256(data)}.safetensors').write_bytes(data)

    return Reader(good, write, lambda: FeatureStore(root, SOURCE))


def _store_card(folder: Path) -> Reader:
    root = _store_folder(folder)
    return _at(root / CARD, lambda: FeatureStore(root, SOURCE))


def _report(folder: Path) -> Reader:
    rows = [
        dict(step='few', method=f'single: {name}', metric='mIoU', value=.5)
        for name in 'ab'
    ]
    path = folder / 'report.json'
    path.write_text(json.dumps(rows))
    return _at(path, lambda: usefulness(path, 'few'))


def _scalars(folder: Path) -> Reader:
    path = folder / 'scalars.json'
    record = {'routing/information': .5, 'step': 3, 'loss': 1.}
    path.write_text(json.dumps(record) + '\n')
    return Reader(json.dumps(record).encode(),
                  lambda data: path.write_bytes(data + b'\n'),
                  lambda: read_information(path))


def _manifest(folder: Path) -> Reader:
    root = folder / 'generated'
    for part in (IMAGES, LABELS):
        (root / part).mkdir(parents=True)
        (root / part / 'a.png').write_bytes(b'')
    (root / ANNOTATIONS).write_bytes(b'')
    digest = sha256(b'')
    record = dict(
        file='a.png',
        height=1,
        width=1,
        annotation='a.png',
        sha256=digest,
        label_sha256=digest)
    content = dict(
        kind='seg',
        classes=['a'],
        settings=dict(a=1),
        images=dict(a=record),
        annotations=dict(sha256=digest))
    path = root / MANIFEST
    path.write_text(json.dumps(content))

    def read() -> None:
        GeneratedFolder(root, dict(a=1), ['a']).has('a')
        check_files(path)

    return _at(path, read)


def _copies(folder: Path) -> Reader:
    """What is said of re-represented images."""
    (folder / 'a.png').write_bytes(b'')
    record = dict(file='a.png', height=1, width=1, sha256=sha256(b''))
    content = dict(kind=COPIES, settings=dict(), images=dict(a=record))
    path = folder / MANIFEST
    path.write_text(json.dumps(content))
    return _at(path, lambda: check_files(path))


def _weights(folder: Path) -> Reader:
    path = folder / 'x.safetensors'
    save_file(dict(a=torch.ones(2)), path)
    return _at(path, lambda: load_from_safetensors(str(path)))


#: By name, what makes a reader of tensors in a folder.
TENSORS: Dict[str, Callable[[Path], Reader]] = dict(
    module=_module,
    head=_head,
    peft_adapter=_peft,
    trunk=_trunk,
    published_trunk=_published,
    moe_file=_moe,
    adaptation=_adapted,
    upstream_release=_release,
    codebook=lambda folder: _release(folder, 'codebook'),
    feature_store=_shard,
    weights=_weights)
#: The same of JSON.
NOTES: Dict[str, Callable[[Path], Reader]] = dict(
    card=_card,
    peft_config=_peft_config,
    recipe=_recipe,
    moe_notes=_moe_notes,
    adaptation_card=_adapted_card,
    release_card=_release_card,
    store_card=_store_card,
    report=_report,
    scalars=_scalars,
    manifest=_manifest,
    copies=_copies)

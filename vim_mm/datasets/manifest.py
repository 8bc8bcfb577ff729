# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a folder of generated images says of its files.

``manifest.json`` names each image with the sha256 of its file, and that of its
label map; of annotations in a file of their own; and its own, of all else that
it says. Manifests of before had none, and are read unverified.
"""

import json
from pathlib import Path, PurePath
from typing import Any, Dict, Iterator, Tuple

from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.kinds import KINDS
from vim_mm.utils.messages import InputError, short
from vim_mm.utils.reading import read_json

MANIFEST, ANNOTATIONS = 'manifest.json', 'annotations.json'
IMAGES, LABELS = 'images', 'labels'
#: Where a manifest, a record and a label map have their checksums.
SUM, LABEL_SUM = 'sha256', 'label_sha256'
#: Bytes of a manifest.
MANIFEST_BYTES = 256 << 20


def read_manifest(path: Path) -> Dict[str, Any]:
    """What a manifest says.

    Raises:
        ValueError: If it is no manifest, or damaged.
    """
    try:
        manifest = read_json(path, MANIFEST_BYTES, values=MANIFEST_BYTES)
        _check(manifest)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"'{path}' is damaged ({error}); name a new "
                         'folder.') from error
    return manifest


def write_manifest(path: Path, manifest: Dict[str, Any]) -> None:
    """Write a manifest with its checksum."""
    manifest = {key: manifest[key] for key in manifest if key != SUM}
    write_atomic(path,
                 json.dumps({
                     SUM: _sum(manifest),
                     **manifest
                 }, indent=1))


def check_files(path: Path) -> None:
    """Compare all files that a manifest names with their checksums.

    Args:
        path (Path): The manifest.

    Raises:
        ValueError: If one is damaged or not there.
    """
    manifest = read_manifest(path)
    named = [
        pair for record in manifest['images'].values()
        for pair in files_of(record)
    ]
    if SUM in manifest.get('annotations', {}):
        named.append((ANNOTATIONS, manifest['annotations'][SUM]))
    for name, digest in named:
        file = path.parent / name
        if not is_whole(file, digest):
            raise InputError(
                f"'{file}' is damaged, or not there: it is not what "
                f"'{path.name}' names. Run tools/generate.py as for the "
                'others, which makes it again; to use the folder as it is, '
                "leave `manifest` out of its data set's config.")


def files_of(record: Dict[str, Any]) -> Iterator[Tuple[str, str]]:
    """The files of an image that have a checksum, and it."""
    if SUM in record:
        yield f'{IMAGES}/{record["file"]}', record[SUM]
    if LABEL_SUM in record:
        yield f'{LABELS}/{record["annotation"]}', record[LABEL_SUM]


def is_whole(path: Path, digest: str) -> bool:
    """Whether a file is there and has a checksum."""
    return path.is_file() and sha256(path) == digest


def _sum(manifest: Dict[str, Any]) -> str:
    return sha256(json.dumps(manifest, sort_keys=True).encode())


def _check(manifest: Any) -> None:
    """Refuse what no manifest says.

    Raises:
        ValueError: If it is so.
    """
    settings, images = manifest['settings'], manifest['images']
    if not isinstance(settings, dict) or not isinstance(images, dict):
        raise ValueError('its settings or images are no dict')
    kind = manifest['kind']
    if kind is not None and kind not in KINDS:
        raise ValueError(f'its kind is {short(kind)}')
    for record in images.values():
        if not isinstance(record, dict) or not _names_image(record):
            raise ValueError(f'its record {short(record)} names no image')
    own = manifest.get('annotations', {})
    if not isinstance(own, dict) or not isinstance(own.get(SUM, ''), str):
        raise ValueError(f'its annotations are {short(own)}')
    rest = {key: manifest[key] for key in manifest if key != SUM}
    if SUM in manifest and manifest[SUM] != _sum(rest):
        raise ValueError('its checksum is of something else')


def _names_image(record: Dict[str, Any]) -> bool:
    names = [record.get('file')]
    if LABEL_SUM in record:
        names.append(record.get('annotation'))
    sums = [record.get(key, '') for key in (SUM, LABEL_SUM)]
    return all(map(_is_inside, names)) and all(
        isinstance(digest, str) for digest in sums) and all(
            type(record.get(key)) is int for key in ('height', 'width'))


def _is_inside(name: Any) -> bool:
    """Whether a name is that of a file below a folder."""
    if not isinstance(name, str):
        return False
    path = PurePath(name)
    return not path.is_absolute() and '..' not in path.parts and len(
        path.name) <= 255

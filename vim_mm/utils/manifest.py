# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What a folder of images that networks made says of its files.

``manifest.json`` names each image with the sha256 of its file, and that of its
label map; of annotations in a file of their own; and its own, of all else that
it says. Generated images lie beside it in ``images``, re-represented copies
around it. Manifests of before had no checksums, and are read unverified.
"""

import json
import os
import re
from pathlib import Path, PurePath
from typing import Any, Dict, Iterator, NamedTuple, Optional, Union

from torchvision.datasets.folder import IMG_EXTENSIONS

from .files import sha256, write_atomic
from .kinds import KINDS
from .messages import InputError, short
from .reading import ReadError, open_regular, read_json

MANIFEST, ANNOTATIONS = 'manifest.json', 'annotations.json'
IMAGES, LABELS = 'images', 'labels'
#: Where a manifest, a record and a label map have their checksums.
SUM, LABEL_SUM = 'sha256', 'label_sha256'
#: The ``kind`` of re-represented copies.
COPIES = 'copies'
#: Bytes of a manifest.
MANIFEST_BYTES = 256 << 20
#: How it begins, which tells it from those of other programs.
_BEGIN = re.compile(rb'\s*\{\s*"(sha256|kind)"\s*:')
#: Of folders that were found whole, what their files looked like then.
_whole: Dict[Path, tuple] = {}


class Named(NamedTuple):
    """A file that a manifest names.

    Attributes:
        name (str): Where it is, from the manifest.
        digest (str): Its sha256.
        limit (int): Bytes that it has at most.
    """
    name: str
    digest: str
    limit: int = MANIFEST_BYTES

    def is_in(self, root: Path) -> bool:
        """Whether it is there, and whole."""
        path = root / self.name
        return (path.is_file() and path.stat().st_size <= self.limit
                and sha256(path) == self.digest)


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


def manifest_of(folder: Union[str, Path]) -> Optional[Path]:
    """The manifest that names a folder's images: there or above, if any."""
    place = Path(folder).resolve()
    for path in (place / MANIFEST, *(up / MANIFEST for up in place.parents)):
        try:
            with open_regular(path) as file:
                if _BEGIN.match(file.read(1024)):
                    return path
        except (OSError, ReadError):
            continue
    return None


def check_files(path: Path) -> None:
    """Compare all files that a manifest names with their checksums.

    Files that have not been touched since they were found whole are not read
    again.

    Args:
        path (Path): The manifest.

    Raises:
        ValueError: If one is damaged or not there, or there is another image.
    """
    manifest = read_manifest(path)
    named = list(files_of_all(manifest))
    state = _state(path.parent / each.name for each in named)
    if state is None or _whole.get(path) != state:
        for each in named:
            if not each.is_in(path.parent):
                raise InputError(
                    f"'{path.parent / each.name}' is damaged, or not there: "
                    f"it is not what '{path.name}' names. " + _advice(manifest)
                )
    if SUM in manifest:
        _check_others(path, manifest)
    _whole[path] = state


def files_of_all(manifest: Dict[str, Any]) -> Iterator[Named]:
    """All files that a manifest has a checksum of."""
    for record in manifest['images'].values():
        yield from files_of(record, _folder(manifest))
    if SUM in manifest.get('annotations', {}):
        yield Named(ANNOTATIONS, manifest['annotations'][SUM])


def files_of(record: Dict[str, Any], folder: str = IMAGES) -> Iterator[Named]:
    """The files of an image that have a checksum.

    Args:
        record (dict): Of the image.
        folder (str): Where images are, from the manifest.
    """
    # no format writes more than four bytes a pixel, but for a header
    limit = 4 * record['height'] * record['width'] + (1 << 20)
    if SUM in record:
        yield Named(
            PurePath(folder, record['file']).as_posix(), record[SUM], limit)
    if LABEL_SUM in record:
        yield Named(f'{LABELS}/{record["annotation"]}', record[LABEL_SUM],
                    limit)


def images_in(folder: Path) -> Iterator[str]:
    """The image files of a folder, at any depth, from there."""
    for path in folder.rglob('*'):
        if path.suffix.lower() in IMG_EXTENSIONS:
            yield path.relative_to(folder).as_posix()


def _check_others(path: Path, manifest: Dict[str, Any]) -> None:
    """Refuse images that a manifest does not name.

    Raises:
        ValueError: If there is one.
    """
    folder = path.parent / _folder(manifest)
    known = {
        PurePath(record['file']).as_posix()
        for record in manifest['images'].values()
    }
    other = min(set(images_in(folder)) - known, default=None)
    if other is not None:
        raise InputError(
            f"'{folder / other}' is none of the images that '{path.name}' "
            'names: move it elsewhere. ' + _advice(manifest))


def _advice(manifest: Dict[str, Any]) -> str:
    again = 'Run tools/generate.py as for the others, which makes it again'
    if manifest['kind'] == COPIES:
        again = 'Make all copies anew with tools/release.py apply'
    return (f'{again}; to use the folder as it is, delete its {MANIFEST}, and '
            "`manifest` in its data set's config.")


def _folder(manifest: Dict[str, Any]) -> str:
    """Where a manifest's images are, from there."""
    return '' if manifest['kind'] == COPIES else IMAGES


def _state(paths: Iterator[Path]) -> Optional[tuple]:
    """What changes when one of some files does; None if one is not there."""
    try:
        return tuple((each.st_ino, each.st_size, each.st_mtime_ns,
                      each.st_ctime_ns) for each in map(os.stat, paths))
    except OSError:
        return None


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
    if kind not in (None, COPIES, *KINDS):
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

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""A module as one tar file, to be handed on by path or URL.

Nothing is extracted: the few files that a module has are read into memory,
checked as in any zoo, and written under names of our own. What else is in a
tar (links, devices, paths that lead out of a folder) is refused.
"""

import io
import tarfile
from http.client import HTTPException
from os.path import expanduser
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Dict, Mapping, Optional, Tuple, Union
from urllib.parse import urlparse
from urllib.request import url2pathname, urlopen

from vim_mm.utils.drafts import NotFlushedError
from vim_mm.utils.files import sha256, write_atomic
from vim_mm.utils.progress import track
from vim_mm.utils.reading import JSON_BYTES, ReadError, open_regular
from .base_card import ZooError, ZooNotFlushedError
from .folder import CARD, HEAD, MODULE, TENSOR_BYTES

#: Bytes of a card, and of a tensor file, at most.
LIMITS = {CARD: JSON_BYTES, MODULE: TENSOR_BYTES, HEAD: TENSOR_BYTES}
#: Bytes of a tar at most: its members, and headers of 512 bytes.
TAR_LIMIT = sum(LIMITS.values()) + (1 << 16)
SCHEMES = ('file', 'http', 'https')
SECONDS = 60
_CHUNK = 1 << 20


def write_parcel(path: Union[str, Path], name: str,
                 content: Mapping[str, bytes]) -> str:
    """Write the files of a module into one tar.

    Equal modules give equal bytes: a tar says nothing of times and owners.

    Args:
        path (str | Path): The tar; its name ends in ``.tar``.
        name (str): Name of the module, the folder in the tar.
        content (Mapping[str, bytes]): Its files.

    Returns:
        str: The sha256 of the tar.

    Raises:
        ZooError: If the name is another, or the tar cannot be written.
    """
    path = Path(expanduser(path))
    if path.suffix != '.tar':
        raise ZooError(f"A module is handed on as one tar: '{path}' does not "
                       'end in .tar.')
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w', format=tarfile.PAX_FORMAT) \
            as tar:
        for file in sorted(content):
            member = tarfile.TarInfo(f'{name}/{file}')
            member.size, member.mode = len(content[file]), 0o644
            tar.addfile(member, io.BytesIO(content[file]))
    data = buffer.getvalue()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise ZooError(f"'{path}' cannot be written: "
                       f'{error.strerror or error}.') from error
    except NotFlushedError as error:
        raise ZooNotFlushedError(str(error)) from error.__cause__
    return sha256(data)


def read_parcel(source: str,
                digest: Optional[str] = None) -> Tuple[str, bytes]:
    """Read a tar from a path or URL.

    Args:
        source (str): Path, or URL of :data:`SCHEMES`. No other host is asked
            for anything.
        digest (str, optional): The sha256 that it must have. Defaults to
            None, any.

    Returns:
        tuple[str, bytes]: Its sha256 and its bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ZooError: If it cannot be read, is too large or is another file.
    """
    data = _read(source)
    found = sha256(data)
    if digest is not None and found != digest.lower():
        raise ZooError(
            f"'{source}' is another file than was meant: its sha256 is "
            f'{found}, and {digest} is asked for; get it again, or ask whom '
            'you have it from.')
    return found, data


def open_parcel(data: bytes, source: str) -> Dict[str, bytes]:
    """The files of a module in a tar.

    Args:
        data (bytes): The tar.
        source (str): Where it is from, for messages.

    Returns:
        dict[str, bytes]: By name, without the folder.

    Raises:
        ZooError: If it is no tar, or holds anything but one module.
    """
    who = f"'{source}' is no module"
    files: Dict[str, bytes] = {}
    folders = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
            for member in tar:
                place = PurePosixPath(member.name)
                if member.isdir() and len(place.parts) == 1:
                    continue
                if not _is_of_a_module(member) or place.name in files:
                    raise ZooError(
                        f'{who}: its tar holds {member.name!r}, and that of a '
                        'module has one folder with the files '
                        f'{", ".join(LIMITS)}, nothing else.')
                if member.size > LIMITS[place.name]:
                    raise ZooError(f'{who}: {member.name!r} has '
                                   f'{member.size:,} bytes, and '
                                   f'{LIMITS[place.name]:,} are allowed.')
                files[place.name] = tar.extractfile(member).read()
                folders.add(place.parent)
    except ZooError:
        raise
    except (tarfile.TarError, ArithmeticError, EOFError, LookupError,
            RecursionError, ValueError) as error:
        raise ZooError(f'{who}: it is no uncompressed tar, or not whole '
                       f'({error}); get it again.') from None
    if len(folders) != 1 or not {CARD, MODULE} <= set(files):
        raise ZooError(f'{who}: its tar holds {sorted(files) or "nothing"} in '
                       f'{len(folders)} folders, and that of a module has '
                       f'{CARD} and {MODULE} in one.')
    return files


def _is_of_a_module(member: tarfile.TarInfo) -> bool:
    """Whether a file of a tar is ordinary, and FOLDER/NAME of ours."""
    folder, *names = PurePosixPath(member.name).parts or ('', )
    return (member.isreg() and not member.issparse()
            and folder not in ('..', '/') and len(names) == 1
            and names[0] in LIMITS)


def _read(source: str) -> bytes:
    scheme = urlparse(source).scheme
    if '://' not in source:
        return _from_path(Path(expanduser(source)))
    if scheme == 'file':
        return _from_path(Path(url2pathname(urlparse(source).path)))
    if scheme not in SCHEMES:
        raise ZooError(f"'{source}' cannot be read: give a path, or a URL of "
                       f'{", ".join(SCHEMES)}.')
    try:
        with urlopen(source, timeout=SECONDS) as answer:
            return _limited(answer, source, answer.length)
    except (OSError, HTTPException) as error:
        reason = getattr(error, 'reason', error)
        raise ZooError(f"'{source}' cannot be read ({reason}); check the "
                       'address and the connection.') from error


def _from_path(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return _limited(file, str(path), _size(file))
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file '{path}': check the path."
                                ) from None
    except (OSError, ReadError) as error:
        raise ZooError(f"'{path}' cannot be read: "
                       f'{getattr(error, "strerror", None) or error}.'
                       ) from error


def _limited(file: BinaryIO, source: str, size: Optional[int]) -> bytes:
    """All bytes of a file, which may not say how many these are."""
    if size is not None and size > TAR_LIMIT:
        raise _too_large(source)
    chunks = []
    expected = max(1, -(-(size or 0) // _CHUNK))
    for chunk in track(
            iter(lambda: file.read(_CHUNK), b''), 'Reading the module',
            expected):
        chunks.append(chunk)
        if len(chunks) * _CHUNK > TAR_LIMIT:
            raise _too_large(source)
    data = b''.join(chunks)
    if size is not None and len(data) != size:
        raise ZooError(f"Of '{source}' {len(data):,} of {size:,} bytes have "
                       'come; get it again.')
    return data


def _size(file: BinaryIO) -> int:
    size = file.seek(0, 2)
    file.seek(0)
    return size


def _too_large(source: str) -> ZooError:
    return ZooError(f"'{source}' has more than {TAR_LIMIT:,} bytes, so it is "
                    'no module.')

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checkpoint loaders that run no code found in a file.

A pickle can execute anything while it is read. mmengine reads pickles
unsafely, or falls back to that; the loaders registered here read safetensors,
and pickles through torch's restricted unpickler only. What that refuses is
named in a sentence, and read only after an explicit opt-in by environment
variable.
"""

import errno
import logging
import os
import os.path as osp
import re
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Callable, Iterator, List, Optional, Union
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer, print_log
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from .checkpoint_form import CheckpointError, check_archive, check_content
from .checksum import is_intact, save_checkpoint
from .downloads import download
from .drafts import named
from .files import shipped
from .pickle_parts import (NDARRAY, PARTS, Budget, Part, bounded_parts,
                           number_builder, reconstruct, size_of)
from .plain_files import (TRUST_ENV, replace_everywhere, torch_reads_safely,
                          trusts_pickles)
from .reading import ReadError
from .tensor_files import TensorFileError, load_tensors

#: Classes whose methods a checkpoint may name, and which.
_METHODS = {
    HistoryBuffer: ('current', 'max', 'mean', 'min'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}
#: Where DeepSpeed puts all weights, in a folder.
_WEIGHTS = 'mp_rank_00_model_states.pt'
MapLocation = Optional[Union[str, torch.device, Callable, dict]]


class UntrustedPickleError(CheckpointError):
    """A pickle that wants to build objects beyond the allow-list."""


def register_loaders() -> None:
    """Put the loaders in place of mmengine's."""
    # not above: that import is what calls this function
    from mmengine.runner import checkpoint as mmengine_checkpoint
    register = mmengine_checkpoint.CheckpointLoader.register_scheme
    # Loaders are chosen by `re.match` in reverse alphabetical order of the
    # patterns: this one comes after the URL schemes and before '', the rest.
    register(r'.+\.safetensors$', load_from_safetensors, force=True)
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    # the remaining schemes (petrel, openmmlab) read through this function
    if hasattr(mmengine_checkpoint, '_safe_torch_load'):
        mmengine_checkpoint._safe_torch_load = load_pickle
    # and torchvision, open-mmlab and mmcls through this one
    mmengine_checkpoint.load_from_http = load_from_http
    _replace_writer(mmengine_checkpoint.save_checkpoint)


def _replace_writer(original: Callable) -> None:
    """Let mmengine write local checkpoints as we do. Idempotent."""
    if hasattr(original, 'writes_whole'):
        return

    @wraps(original)
    def save(checkpoint: Any, filename: str, *args: Any,
             **kwargs: Any) -> None:
        if any(args) or any(kwargs.values()) or '://' in str(filename):
            original(checkpoint, filename, *args, **kwargs)  # elsewhere
        else:
            save_checkpoint(checkpoint, filename)

    save.writes_whole = True
    replace_everywhere('save_checkpoint', original, save)


def load_from_safetensors(filename: str,
                          map_location: MapLocation = None) -> dict:
    """Load a ``.safetensors`` file as ``dict(state_dict=...)``.

    Args:
        filename: Path of the file.
        map_location: Device for the tensors, as in :func:`torch.load`. Other
            kinds of map_location leave them on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged or no safetensors file.
    """
    path = _existing(filename)
    try:
        state_dict = load_tensors(path)
    except TensorFileError as error:
        raise CheckpointError(
            f'{path} is truncated or not a safetensors file ({error}): '
            'fetch or write it again.') from error
    with named(Path(path)):
        _check_intact(path)
    if isinstance(map_location, (str, torch.device)):
        state_dict = {k: v.to(map_location) for k, v in state_dict.items()}
    return dict(state_dict=state_dict)


def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    """Load a local pickle (``.pth``) without running code from it.

    Args:
        filename: Path of the file.
        map_location: As in :func:`torch.load`.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged or no torch checkpoint.
        UntrustedPickleError: The file holds objects beyond tensors, plain
            containers, numpy arrays and mmengine's training records.
    """
    path = _existing(_of_folder(filename))
    with named(Path(path)):  # a disk that fails names no file
        try:
            size = check_archive(path)
        except ReadError as error:
            raise CheckpointError(f'{path}: {error}.') from None
        _check_intact(path)
        content = load_pickle(path, map_location=map_location)
    check_content(content, path, size, str(map_location) == 'meta')
    if osp.basename(path) == _WEIGHTS and 'module' in content:
        content['state_dict'] = content.pop('module')
    return content


def _of_folder(path: str) -> str:
    """The file with the weights of a folder that DeepSpeed has written.

    Raises:
        CheckpointError: If they lie in parts.
    """
    folder = osp.expanduser(path)
    file = osp.join(folder, _WEIGHTS)
    if osp.isfile(file):
        return file
    if osp.isfile(osp.join(folder, f'zero_pp_rank_0_{_WEIGHTS}')):
        where, name = osp.split(folder.rstrip(osp.sep))
        raise CheckpointError(
            f'{path} holds the weights in parts (ZeRO-3 of DeepSpeed); join '
            f'them with `python {osp.join(where, "zero_to_fp32.py")} {where} '
            f'JOINED --tag {name}` and take JOINED/pytorch_model.bin.')
    return path


def load_from_http(filename: str,
                   map_location: MapLocation = None,
                   model_dir: Optional[str] = None) -> Any:
    """Fetch a checkpoint once, on the first rank, and load it safely.

    Args:
        filename: URL.
        map_location: As in :func:`torch.load`.
        model_dir: Folder to keep the file in. Defaults to torch hub's.

    Raises:
        DownloadError: If the address cannot be read.
    """
    folder = model_dir or osp.join(torch.hub.get_dir(), 'checkpoints')
    path = osp.join(folder, osp.basename(urlparse(filename).path))
    try:
        if get_dist_info()[0] == 0 and not osp.exists(path):
            os.makedirs(folder, exist_ok=True)
            download(filename, path)
    finally:  # the others see that there is no file
        barrier()
    load = load_from_safetensors if path.endswith(
        '.safetensors') else load_from_local
    return load(path, map_location)


def load_pickle(file: Any,
                map_location: MapLocation = None,
                weights_only: Optional[bool] = None) -> Any:
    """``torch.load`` restricted to the allow-list; callers cannot lift it.

    Args:
        file: Path or readable binary file.
        map_location: As in :func:`torch.load`.
        weights_only: Ignored: present for callers of mmengine's function that
            this one replaces.

    Raises:
        CheckpointError: The file is damaged or no torch checkpoint.
        UntrustedPickleError: It holds objects beyond the allow-list.
    """
    if not torch_reads_safely():
        return _load_trusted(
            file, map_location, f'{file} is a pickle, and torch '
            f'{torch.__version__} can be made to run any code by reading one '
            '(CVE-2025-32434); torch >= 2.6 cannot')
    try:
        with _allowed(size_of(file)), _own_statistics():
            return torch.load(
                file, map_location=map_location, weights_only=True)
    except MemoryError:
        raise CheckpointError(
            f'{file} does not fit into memory, or claims to hold more than it '
            'does: fetch or write it again.') from None
    except Exception as error:  # bytes that changed raise any kind
        # an archive cut short may send its reader before its start
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        if isinstance(error, RuntimeError) and _is_device_error(error):
            raise
        refused = _refused_globals(file, error)
        if not refused:
            raise CheckpointError(
                f'{file} is truncated or not a torch checkpoint '
                f'({_first_line(error)}): fetch or write it again.') from error
        return _load_trusted(
            file, map_location, f'{file} is a pickle that would build '
            f'{", ".join(refused)} while it is read, which can run any code',
            error)


def _load_trusted(file: Any,
                  map_location: MapLocation,
                  reason: str,
                  error: Optional[Exception] = None) -> Any:
    """Read a pickle without restrictions, if its reader has said so."""
    if not trusts_pickles():
        raise UntrustedPickleError(
            f'{reason}. It was not loaded: if you trust where it comes from, '
            f'set {TRUST_ENV}=1; '
            'better, convert it to .safetensors once.') from error
    print_log(
        f'{TRUST_ENV}=1: reading it UNSAFELY, though {reason}.',
        logger='current',
        level=logging.WARNING)
    return torch.load(file, map_location=map_location, weights_only=False)


def _existing(filename: str) -> str:
    path = osp.expanduser(filename)
    if not osp.isfile(path):
        about = shipped('configs') / '_base_/trunks' / f'{Path(path).stem}.py'
        hint = f', or get it as the first lines of {about} say' \
            if about.is_file() else ''
        raise FileNotFoundError(
            f'There is no checkpoint file {path}: check the path{hint}.')
    return path


def _check_intact(path: str) -> None:
    if is_intact(path) is False:
        raise CheckpointError(
            f'{path} is damaged: its bytes are not those that its checksum is '
            'of; take another copy or another checkpoint.')


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip('. ')


def _is_device_error(error: RuntimeError) -> bool:
    """Whether the error is about a missing GPU, not about the file."""
    return 'deserialize object on' in str(error)


def _refused_globals(file: Any, error: Exception) -> List[str]:
    """Names of the objects a readable pickle wants beyond the allow-list."""
    if hasattr(file, 'seek'):
        file.seek(0)
    try:
        with _allowed():
            found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # it scans zip archives only, undamaged
        found = []
    if hasattr(file, 'seek'):
        file.seek(0)
    return found or re.findall(r'GLOBAL (\S+)', str(error))


@contextmanager
def _allowed(size: int = 0) -> Iterator[None]:
    """What mmengine's Runner puts into checkpoints besides tensors.

    Args:
        size (int): Bytes of the file, if it is read.
    """
    scalar = number_builder()
    allowed = [
        *_METHODS, np.dtype, slice,
        (Part(PARTS['builtins.bytes'], Budget(size)), 'builtins.bytes'),
        (_method, 'builtins.getattr'), (NDARRAY, 'numpy.ndarray'),
        # what it fills; a name in a file has a point
        (np.ndarray, 'arrays'),
        *{type(np.dtype(kind)) for kind in '?bBhHiIlLqQefd'}
    ]
    # numpy 2 moved these; files of either version name them their own way
    for home in ('numpy.core.multiarray', 'numpy._core.multiarray'):
        allowed += [(reconstruct, f'{home}._reconstruct'),
                    (scalar, f'{home}.scalar')]
    with torch.serialization.safe_globals(allowed), bounded_parts(
            size):
        yield


@contextmanager
def _own_statistics() -> Iterator[None]:
    """Keep what a file says of the statistics of all buffers out of them."""
    own = dict(HistoryBuffer()._statistics_methods)  # the first adds its own
    try:
        yield
    finally:
        HistoryBuffer._statistics_methods.clear()
        HistoryBuffer._statistics_methods.update(own)


def _method(owner: type, name: str) -> Callable:
    """Restricted replacement of ``getattr``, which must not be allowed.

    A HistoryBuffer pickles its statistics as ``getattr(HistoryBuffer, name)``,
    a one-cycle schedule its curve alike; nothing else in a checkpoint needs
    it.
    """
    if name not in _METHODS.get(owner, ()):
        raise UnpicklingError(
            f'GLOBAL getattr is refused for {owner!r} and {name!r}')
    return getattr(owner, name)

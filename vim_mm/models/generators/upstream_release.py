# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""OTA's upstream release: a folder of encoder, codebook, decoder and card.

It is what a provider gives away of a foundation model's training images; none
of them is in it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union

from torch import Tensor

from vim_mm.utils.arguments import arguments_of
from vim_mm.utils.files import new_folder, sha256
from vim_mm.utils.messages import cut
from vim_mm.utils.meta import without_memory
from vim_mm.utils.reading import JSON_BYTES, ReadError, read_regular
from vim_mm.utils.tensor_files import HEADER_BYTES
from vim_mm.version import __version__
from vim_mm.zoo.base_card import Card, ZooError, is_sha256
from vim_mm.zoo.checks import demand, not_finite
from vim_mm.zoo.files import pack, unpack
from .vq_autoencoder import VQAutoEncoder

CARD = 'card.json'
PARTS = ('encoder', 'codebook', 'decoder')
#: Modules of an auto-encoder; one of two blocks has some forty.
PARTS_BUILT = 2000


@dataclass(frozen=True, kw_only=True)
class UpstreamCard(Card):
    """Contents of a release's ``card.json``, checked on construction.

    Args:
        name: Its name.
        data: What the images were, in words.
        num_images: How many.
        licence: Licence of the release.
        architecture: Arguments of :class:`VQAutoEncoder`.
        metrics: Numbers: reconstruction errors, codes in use.
        leak: Of :func:`vim_mm.evaluation.leak.leak_report`.
        training: Config name, seconds, iterations and the like.
        sha256: Of each tensor file, by its part; filled in on saving.
        format_version: Version of this format.
        vim_mm_version: The vim_mm that wrote it.

    Raises:
        ZooError: If a field has the wrong type or contradicts another one.
    """

    name: str
    data: str
    num_images: int
    licence: str
    architecture: Dict[str, int]
    metrics: Dict[str, float] = field(default_factory=dict)
    leak: Dict[str, float] = field(default_factory=dict)
    training: Dict[str, Any] = field(default_factory=dict)
    sha256: Dict[str, str] = field(default_factory=dict)
    format_version: int = 1
    vim_mm_version: str = __version__

    WHAT = 'upstream release'
    VERSION = 1
    TYPES = dict(
        name=str,
        data=str,
        num_images=int,
        licence=str,
        architecture=dict,
        metrics=dict,
        leak=dict,
        training=dict,
        sha256=dict,
        format_version=int,
        vim_mm_version=str)
    ON_DISK = ('name', 'data', 'num_images', 'licence', 'architecture',
               'metrics', 'leak', 'sha256')

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ('data', 'licence'):
            if not getattr(self, key).strip():
                self._fail(f'its {key!r} is empty; say what others must know')
        if self.num_images < 1:
            self._fail(f"its 'num_images' is {self.num_images}")
        known = arguments_of(VQAutoEncoder)
        for key, value in self.architecture.items():
            if key not in known or type(value) is not int or value < 1:
                self._fail(f'its architecture has {key}={value!r}, which is '
                           'no size of a VQAutoEncoder')
        if self.sha256 and (set(self.sha256) != set(PARTS)
                            or not all(map(is_sha256, self.sha256.values()))):
            self._fail(f'its sha256 is not one of each of {", ".join(PARTS)}')


def save_upstream_release(model: VQAutoEncoder, folder: Union[str, Path],
                          **card: Any) -> UpstreamCard:
    """Publish a trained auto-encoder: the folder appears when it is whole.

    Args:
        model (VQAutoEncoder): The model.
        folder (str | Path): Folder to make.
        **card: Fields of :class:`UpstreamCard`, without ``architecture`` and
            ``sha256``.

    Raises:
        ZooError: If the card is not valid, a tensor not finite, or the folder
            is there already or cannot be written.
    """
    folder = Path(folder)
    parts = dict(
        encoder=model.encoder.state_dict(),
        codebook=dict(codebook=model.codebook),
        decoder=model.decoder.state_dict())
    for part, tensors in parts.items():
        demand(not_finite(tensors), f'The {part} to release')
    data = {part: pack(tensors) for part, tensors in parts.items()}
    finished = UpstreamCard(
        **card,
        architecture=model.architecture,
        sha256={part: sha256(content)
                for part, content in data.items()})
    try:
        with new_folder(folder, error=ZooError) as draft:
            for part, content in data.items():
                (draft / f'{part}.safetensors').write_bytes(content)
            (draft / CARD).write_text(finished.to_json(), encoding='utf-8')
    except OSError as error:
        raise ZooError(f"The upstream release '{folder}' cannot be written "
                       f'({error}); nothing is left of it.') from error
    return finished


def read_upstream_card(folder: Union[str, Path]) -> UpstreamCard:
    """Read the card of a release.

    Raises:
        ZooError: If it is missing or invalid.
    """
    path = Path(folder) / CARD
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError
        card = UpstreamCard.from_json(read_regular(path, JSON_BYTES))
        if not card.sha256:
            raise ZooError('its sha256 names no tensor file.')
        return card
    except FileNotFoundError:
        raise ZooError(f"'{folder}' holds no {CARD}: name the folder of an "
                       'upstream release.') from None
    except (ReadError, ZooError) as error:
        raise ZooError(f"'{path}': {error}") from None


def load_upstream_release(
        folder: Union[str, Path],
        card: Optional[UpstreamCard] = None) -> VQAutoEncoder:
    """Read a release and check it against its card.

    Args:
        folder (str | Path): The folder.
        card (UpstreamCard, optional): Its card, if it has been read already.

    Returns:
        VQAutoEncoder: Frozen, in eval mode, on the CPU.

    Raises:
        ZooError: If a file is missing, damaged, or not what the card says.
    """
    folder = Path(folder)
    card = card or read_upstream_card(folder)
    found = {}
    for part, expected in _expected(card).items():
        path = folder / f'{part}.safetensors'
        found[part] = _read(path, card.sha256[part], expected)
        _check(found[part], expected, path)
    model = VQAutoEncoder(**card.architecture)
    model.encoder.load_state_dict(found['encoder'])
    model.codebook = found['codebook']['codebook']
    model.decoder.load_state_dict(found['decoder'])
    model.requires_grad_(False)
    return model.eval()


def _expected(card: UpstreamCard) -> Dict[str, Dict[str, Tensor]]:
    """The tensors of each part as a card describes them, without memory.

    Raises:
        ZooError: If it describes no auto-encoder.
    """
    try:
        with without_memory(PARTS_BUILT):
            model = VQAutoEncoder(**card.architecture)
    except Exception as error:  # what sizes of a stranger lead to
        raise ZooError(
            f'The upstream release {card.name!r} cannot be built as its card '
            f'says ({cut(str(error), 200)}).') from None
    return dict(
        encoder=model.encoder.state_dict(),
        codebook=dict(codebook=model.codebook),
        decoder=model.decoder.state_dict())


def _read(path: Path, digest: str,
          expected: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Read a tensor file once: what is hashed is what is parsed."""
    limit = HEADER_BYTES + sum(each.nbytes for each in expected.values())
    try:
        data = read_regular(path, limit)
    except FileNotFoundError:
        raise ZooError(f"'{path}' is missing, but an upstream release has it; "
                       'get it again from its source.') from None
    except ReadError as error:
        raise ZooError(f"'{path}': {error}; get it again from its source."
                       ) from None
    if sha256(data) != digest:
        raise ZooError(f"'{path}' is damaged or was exchanged: its sha256 is "
                       'not the one on the card; get it again from its '
                       'source.')
    return unpack(data, path)


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor],
           path: Path) -> None:
    """Refuse tensors that are not those of the card's architecture."""
    problems = [
        f'tensor {key!r} is {_describe(tensors.get(key))} and should be '
        f'{_describe(expected.get(key))}'
        for key in sorted({*tensors, *expected})
        if _describe(tensors.get(key)) != _describe(expected.get(key))
    ]
    problems = problems or not_finite(tensors)
    demand(problems, f"'{path}'")


def _describe(tensor: Optional[Tensor]) -> str:
    if tensor is None:
        return 'absent'
    kind = str(tensor.dtype).removeprefix('torch.')
    return f'{kind} of {tuple(tensor.shape)}'

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The three layouts of a trunk's features, and streams of them."""

from typing import Callable, Iterable, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor


def as_tokens(features: Tensor) -> Tensor:
    """A map, tokens or a vector an image, as tokens.

    Args:
        features (Tensor): A map (B, C, H, W), tokens (B, L, C) or a vector
            (B, C), which counts as one token.

    Returns:
        Tensor: Shape (B, L, C); of a map row by row.
    """
    if features.dim() == 4:
        return features.flatten(2).transpose(1, 2)
    return features[:, None] if features.dim() == 2 else features


def tokens_like(tokens: Tensor, features: Tensor) -> Tensor:
    """Tokens in the layout of features: the way back of :func:`as_tokens`.

    Args:
        tokens (Tensor): Shape (B, L, C).
        features (Tensor): Features of as many tokens, in any layout.

    Returns:
        Tensor: In the layout, and of the height and width, of ``features``.
    """
    if features.dim() == 4:
        return tokens.transpose(1, 2).unflatten(2, features.shape[-2:])
    return tokens[:, 0] if features.dim() == 2 else tokens


def as_levels(outputs: Union[Tensor, Sequence[Tensor]]) -> Tuple[Tensor, ...]:
    """Outputs of a trunk as the tuple of levels that necks read."""
    return (outputs, ) if isinstance(outputs, Tensor) else tuple(outputs)


def channels_of(features: Union[Tensor, Sequence[Tensor]]) -> List[int]:
    """Channels of every level of a trunk's or neck's outputs.

    Args:
        features: A map (B, C, H, W), tokens (B, L, C) or a vector (B, C), or
            a sequence of them.

    Raises:
        ValueError: If one is something else.
    """
    levels = as_levels(features)
    for index, level in enumerate(levels):
        if not isinstance(level, Tensor) or not 2 <= level.dim() <= 4:
            raise ValueError(
                f'Output {index} is a {type(level).__name__} of shape '
                f"{tuple(getattr(level, 'shape', ()))}, and parts read maps "
                '(B, C, H, W), tokens (B, L, C) and vectors (B, C); set the '
                "trunk's `out_type`.")
    return [as_tokens(level).shape[-1] for level in levels]


def pool_tokens(features: Sequence[Tensor], num_extra_tokens: int) -> Tensor:
    """Extra tokens, mean and maximum of the patches, of every level.

    Args:
        features (Sequence[Tensor]): Tokens (B, E + H * W, C), as from
            ``out_type='raw'``, maps (B, C, H, W), or vectors (B, C), as from
            ``out_type='cls_token'``, which are taken as they are.
        num_extra_tokens (int): E, for tokens.

    Returns:
        Tensor: Shape (B, D), D the sum of ``(E + 2) * C`` (maps: ``2 * C``,
        vectors: C) over the levels.
    """
    parts = []
    for level in features:
        if level.dim() == 2:
            parts.append(level)
            continue
        patches = as_tokens(level)
        if level.dim() == 3:
            parts.append(level[:, :num_extra_tokens].flatten(1))
            patches = level[:, num_extra_tokens:]
        parts += [patches.mean(dim=1), patches.amax(dim=1)]
    return torch.cat(parts, dim=1)


class Streams(tuple):
    """One tuple of features per module, and whose they are.

    Attributes:
        names (list[str], optional): The modules, in order; None once a copy
            has lost them.
        read_trunk (callable, optional): Gives the bare trunk's features of
            the same images, which may take a pass; None once a copy has lost
            it.
    """

    names: Optional[List[str]] = None
    read_trunk: Optional[Callable[[], tuple]] = None

    @classmethod
    def of(cls,
           names: Sequence[str],
           features: Iterable[tuple],
           read_trunk: Optional[Callable[[], tuple]] = None) -> 'Streams':
        """The streams of the named modules."""
        streams = cls(features)
        streams.names = list(names)
        streams.read_trunk = read_trunk
        return streams

    def map(self, change: Callable[[tuple], tuple]) -> 'Streams':
        """The same of changed features, the trunk's read now."""
        trunk = None
        if self.read_trunk is not None:
            trunk = Kept(change(self.read_trunk()))
        return Streams.of(self.names or (), map(change, self), trunk)


class Kept:
    """What is called to get a value, which is there already."""

    def __init__(self, value: tuple) -> None:
        self.value = value

    def __call__(self) -> tuple:
        return self.value


def check_levels(kind: Union[str, type], index: Union[int, Sequence[int]],
                 number: int) -> List[int]:
    """The levels that a head reads, which must be there.

    Args:
        kind (str | type): The head, for the message.
        index (int | Sequence[int]): Its ``in_index``.
        number (int): How many levels there are.

    Raises:
        ValueError: If it reads others.
    """
    places = list(index) if isinstance(index, (list, tuple)) else [index]
    if not all(isinstance(i, int) and -number <= i < number for i in places):
        raise ValueError(
            f'{getattr(kind, "__name__", kind)} reads the levels '
            f'`in_index={index}`, and there are {number}; correct it.')
    return places

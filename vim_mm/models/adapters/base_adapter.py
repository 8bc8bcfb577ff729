# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from abc import ABCMeta, abstractmethod
from copy import deepcopy
from typing import Dict, Hashable, Optional, Sequence, Tuple

import torch
from mmengine.model import BaseModule
from torch import Tensor

Grid = Tuple[int, int]


class BaseAdapter(BaseModule, metaclass=ABCMeta):
    """The small net that sits in one slot of a trunk.

    An adapter maps the tokens a slot reads to what is added to the slot's
    output. A fresh adapter returns exact zeros, so that plugging it in leaves
    the trunk unchanged.

    Subclasses register themselves in ``MODELS`` and are built with ``dims``,
    the width of the slot, as a keyword argument. They are built without memory
    (on torch's meta device) first, to compare a module's weights with them.

    Class attributes:
        linear (bool): Whether its slots are the trunk's linear layers, whose
            input and output may differ in width; ``dims`` may be two numbers.
        beside (bool): Whether it reads the trunk's outputs instead of sitting
            inside it; then its methods take a ``state`` more, see
            :class:`SideLadder`.
        needs_grid (bool): Whether it asks for the rows and columns of the
            tokens.
    """

    linear = False
    beside = False
    needs_grid = True
    #: output scale that is no parameter; kinds that have one overwrite it
    scale = 1.

    @abstractmethod
    def forward(self, x: Tensor, grid: Optional[Grid]) -> Tensor:
        """Map tokens to the delta of this adapter alone.

        Args:
            x (Tensor): Tokens of shape (B, E + H * W, dims): E extra tokens
                (class, registers) first, then the patches row by row.
            grid (tuple[int, int], optional): H and W, in patches; None for
                kinds that do not need it.

        Returns:
            Tensor: The delta, one token for each token of ``x``.
        """

    def cfg(self) -> dict:
        """The config that builds such an adapter, without ``dims``.

        Dropout and initialisation, which its function does not show, are left
        out.

        Raises:
            NotImplementedError: If the kind does not say.
        """
        raise NotImplementedError(
            f'{type(self).__name__} does not say its config.')

    def said_settings(self) -> dict:
        """What of its config changes its function, as far as it says it."""
        try:
            return self.cfg()
        except NotImplementedError:
            return dict(type=type(self).__name__, scale=self.scale)

    @property
    def adds_nothing(self) -> bool:
        """Whether its delta is known to be zero, whatever it reads."""
        return False

    def times_scale(self, delta: Tensor) -> Tensor:
        """Multiply by the output scale; one spares a pass over the tokens."""
        return delta if self.scale == 1 else self.scale * delta

    @property
    def fold_key(self) -> Hashable:
        """Adapters with equal keys can be folded into one."""
        return type(self)

    @property
    def wide_key(self) -> Hashable:
        """Adapters with equal keys can be evaluated as one wide adapter.

        A frozen and a learning adapter do not share one dropout.
        """
        dropout = getattr(self, 'dropout', None)
        return self.fold_key, dropout.p if dropout and self.training else 0.

    @classmethod
    def wide(cls, adapters: Sequence['BaseAdapter'], gates: Tensor, x: Tensor,
             grid: Optional[Grid]) -> Tensor:
        """Gated sum of several adapters over the same tokens.

        This plain loop is the reference; kinds with a batched form override
        it and are tested against it.

        Args:
            adapters (Sequence[BaseAdapter]): K adapters of equal
                :attr:`wide_key`.
            gates (Tensor): Weights of shape (K, ), or (B, K): a row for each
                image.
            x (Tensor): Tokens of shape (B, E + H * W, dims).
            grid (tuple[int, int], optional): H and W, in patches.

        Returns:
            Tensor: ``sum_k gates[k] * adapters[k](x)``.
        """
        return sum(
            weigh(gates[..., index], adapter(x, grid))
            for index, adapter in enumerate(adapters))

    @classmethod
    def merged(cls, adapters: Sequence['BaseAdapter'], gates: Tensor,
               x: Tensor, *args) -> Tensor:
        """The one adapter whose parameters are the gated sum of several'.

        Args:
            adapters (Sequence[BaseAdapter]): K adapters of equal
                :attr:`wide_key`.
            gates (Tensor): Weights of shape (K, ).
            x (Tensor): Tokens of shape (B, E + H * W, dims).
            *args: What else :meth:`forward` takes.

        Returns:
            Tensor: What its :meth:`forward` gives.

        Raises:
            ValueError: If the adapters differ in width or output scale, or
                every image has gates of its own.
        """
        mean = cls.merged_parameters(adapters, gates)
        return torch.func.functional_call(adapters[0], mean, (x, *args))

    @classmethod
    @torch.no_grad()
    def merge(cls, adapters: Sequence['BaseAdapter'],
              gates: Tensor) -> 'BaseAdapter':
        """The adapter that :meth:`merged` runs, as one to keep.

        See :meth:`merged` for arguments and errors.
        """
        merged = deepcopy(adapters[0]).requires_grad_(False).eval()
        mean = cls.merged_parameters(adapters, gates)
        for name, param in merged.named_parameters():
            param.copy_(mean[name])
        return merged

    @classmethod
    def merged_parameters(cls, adapters: Sequence['BaseAdapter'],
                          gates: Tensor) -> Dict[str, Tensor]:
        """``sum_k gates[k] * p_k`` for every parameter p, by name."""
        if gates.dim() > 1:
            raise ValueError('Parameters cannot be merged with gates that '
                             'differ from image to image; fuse outputs.')
        named = [dict(adapter.named_parameters()) for adapter in adapters]
        shapes = [{k: p.shape for k, p in params.items()} for params in named]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f'{cls.__name__} adapters of different widths have no common '
                'parameters to merge; fuse their outputs (EnsMoE) instead.')
        scales = {adapter.scale for adapter in adapters}
        if len(scales) > 1:
            raise ValueError(
                f'{cls.__name__} adapters of the output scales '
                f'{sorted(scales)} cannot be merged; fuse their outputs '
                '(EnsMoE) instead.')
        return {
            key: torch.einsum('k,k...->...', gates,
                              torch.stack([params[key] for params in named]))
            for key in named[0]
        }

    @classmethod
    def fold(cls,
             adapters: Sequence['BaseAdapter'],
             gates: Tensor,
             width: Optional[int] = None) -> 'BaseAdapter':
        """One plain adapter of this kind that equals the gated sum.

        Args:
            adapters (Sequence[BaseAdapter]): K adapters of equal
                :attr:`fold_key`.
            gates (Tensor): Weights of shape (K, ).
            width (int, optional): Number of members of the result: zero
                members, as wide as the widest, fill the places behind the
                K-th, so that slots with fewer members share one config. K
                when None. Defaults to None.

        Returns:
            BaseAdapter: In eval mode, of the dtype and on the device of the
            first; build its like with :meth:`cfg`.

        Raises:
            NotImplementedError: If the kind has no wide form.
            ValueError: If ``width`` is smaller than K or the adapters have
                different keys.
        """
        raise NotImplementedError(
            f'{cls.__name__} has no wide form, so several cannot be folded '
            'into one.')

    @classmethod
    def _padding(cls, adapters: Sequence['BaseAdapter'],
                 width: Optional[int]) -> int:
        """How many zero members :meth:`fold` appends."""
        keys = {adapter.fold_key for adapter in adapters}
        if len(keys) > 1:
            raise ValueError(f'Adapters of the kinds or widths {keys} cannot '
                             'be folded into one.')
        padding = 0 if width is None else width - len(adapters)
        if padding < 0:
            raise ValueError(f'width={width} is too small for '
                             f'{len(adapters)} adapters.')
        return padding


def weigh(gates: Tensor, values: Tensor) -> Tensor:
    """Multiply (B, ...) values by one gate, or by one an image, (B, )."""
    return gates.view(-1, *[1] * (values.dim() - 1)) * values

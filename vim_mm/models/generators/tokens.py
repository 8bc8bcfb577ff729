# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Blocks of a vision transformer that compute some of their tokens only."""

import re
from contextlib import ExitStack, contextmanager
from typing import Dict, Iterator, List, Optional

import torch
from torch import Tensor, nn

from vim_mm.utils.arguments import check_number
from ..recorder import tapping

#: Blocks of mmpretrain's and timm's vision transformers.
BLOCKS = r'(.+\.)?(layers|blocks)\.\d+'
RANDOM, SALIENCY = 'random', 'saliency'


class TokenDropping:
    """A share of the patches takes no part in a step, another one each time.

    The blocks compute the tokens that are kept. In what they give, those that
    were dropped are the guide's own, computed once without dropping: a map or
    a mean over the patches stays whole, and a loss has the size that it has
    without dropping.

    Args:
        share (float): Of the patches that are dropped. Defaults to 0.5.
        until (float): Share of the steps in which they are; the last ones
            see all tokens, because what a token attends to is another thing
            without those that were dropped. Defaults to 0.75.
        order (str): ``'random'``; or ``'saliency'``, which drops patches
            rather where the image's gradient was small when they were last
            kept. Defaults to 'random'.
        blocks (str, optional): Pattern for the backbone's blocks. Defaults
            to None, for those of mmpretrain and timm.
        num_extra_tokens (int, optional): Class and register tokens, which are
            always kept; they come first. Defaults to None, which is what does
            not fit the grid of patches.

    Raises:
        ValueError: If a setting has no meaning.
    """

    def __init__(self,
                 share: float = 0.5,
                 until: float = 0.75,
                 order: str = RANDOM,
                 blocks: Optional[str] = None,
                 num_extra_tokens: Optional[int] = None) -> None:
        check_number(share, 'tokens.share', below=1)
        if not isinstance(until, (int, float)) or not 0 < until <= 1:
            raise ValueError(f'`tokens.until` is {until!r}; give a number '
                             'above 0, at most 1.')
        if order not in (RANDOM, SALIENCY):
            raise ValueError(f'`tokens.order` is {order!r}; give {RANDOM!r} '
                             f'or {SALIENCY!r}.')
        self.share = share
        self.until = until
        self.order = order
        self.pattern = blocks or BLOCKS
        self.num_extra_tokens = num_extra_tokens

    def blocks(self, backbone: nn.Module) -> Dict[str, nn.Module]:
        """The blocks of a backbone, by name, without blocks inside blocks.

        Raises:
            ValueError: If there are none.
        """
        fits = re.compile(self.pattern).fullmatch
        found: Dict[str, nn.Module] = {}
        for name, module in backbone.named_modules():
            inside = any(name.startswith(f'{outer}.') for outer in found)
            if fits(name) and not inside:
                found[name] = module
        if not found:
            raise ValueError(
                f'{type(backbone).__name__} has no blocks of tokens named '
                f'like {self.pattern!r}; token dropping is for vision '
                'transformers (tokens=None leaves it out).')
        return found


class TokenStream:
    """The tokens of a batch that a step computes.

    Args:
        dropping (TokenDropping): How many, and which.
        backbone (nn.Module): A vision transformer.
    """

    def __init__(self, dropping: TokenDropping, backbone: nn.Module) -> None:
        self.dropping = dropping
        self.modules = dropping.blocks(backbone)
        self.guide: Dict[str, Tensor] = {}
        self.kept: Optional[Tensor] = None
        self.saliency: Optional[Tensor] = None

    @contextmanager
    def reading_guide(self) -> Iterator[None]:
        """Within this context a pass over the guides leaves their tokens.

        Raises:
            ValueError: If the blocks do not give tokens, once each.
        """
        with tapping(self.modules) as seen:
            yield
        self.guide = {}
        for name, calls in seen.items():
            output = calls[0].output if len(calls) == 1 else None
            if not isinstance(output, Tensor) or output.dim() != 3:
                raise ValueError(
                    f'The block {name!r} does not give one tensor of tokens '
                    '(B, L, C) in a pass, so none can be dropped; set '
                    'tokens=None, or `tokens.blocks` to those that do.')
            self.guide[name] = output.detach()

    def draw(self, images: Tensor, generators: List[torch.Generator]) -> None:
        """Choose the tokens of the next step, for each image by itself.

        Args:
            images (Tensor): Of the step; their size tells the grid.
            generators (list[torch.Generator]): Of each image.
        """
        length = next(iter(self.guide.values())).shape[1]
        rows, cols, extra = self._grid(length, images.shape[-2:])
        num = rows * cols
        keep = max(1, round(num * (1 - self.dropping.share)))
        noise = torch.stack(
            [torch.rand(num, generator=generator) for generator in generators])
        if self.saliency is not None:
            # the largest of u^(1/w) are a draw by the weights w
            noise = noise.log() / self.saliency.to(noise)
        patches = noise.topk(keep, 1).indices.sort(1).values + extra
        first = torch.arange(extra).expand(len(patches), -1)
        self.kept = torch.cat([first, patches], 1).to(images.device)
        self.extra, self.shape = extra, (rows, cols)

    def _grid(self, length: int, size: torch.Size) -> tuple:
        """Rows, columns and extra tokens, by the patches being square."""
        for patch in range(1, min(size) + 1):
            rows, cols = size[0] // patch, size[1] // patch
            extra = length - rows * cols
            wanted = self.dropping.num_extra_tokens
            if extra == wanted or (wanted is None and 0 <= extra < 17):
                return rows, cols, extra
        raise ValueError(
            f'{length} tokens are no grid of square patches of an image of '
            f'{size[0]}x{size[1]} px with up to 16 extra tokens; set '
            '`tokens.num_extra_tokens`.')

    @contextmanager
    def dropping_tokens(self) -> Iterator[None]:
        """Within this context the blocks compute the kept tokens."""
        with ExitStack() as stack:
            for name, module in self.modules.items():
                for handle in (module.register_forward_pre_hook(self._gather),
                               module.register_forward_hook(
                                   self._scatter(name))):
                    stack.callback(handle.remove)
            yield

    def take(self, tokens: Tensor) -> Tensor:
        """The kept ones of all tokens."""
        index = self.kept[..., None].expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, index)

    def _gather(self, _: nn.Module, args: tuple) -> tuple:
        return (self.take(args[0]), *args[1:])

    def _scatter(self, name: str) -> object:

        def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            index = self.kept[..., None].expand_as(output)
            return self.guide[name].scatter(1, index, output)

        return hook

    def learn(self, grad: Tensor) -> None:
        """Remember where the gradient of the images was large.

        Args:
            grad (Tensor): (B, C, H, W).
        """
        if self.dropping.order != SALIENCY:
            return
        strength = grad.detach().square().sum(1, keepdim=True)
        strength = nn.functional.adaptive_avg_pool2d(strength, self.shape)
        index = self.kept[:, self.extra:] - self.extra
        fresh = strength.flatten(1).sqrt().gather(1, index)
        fresh /= fresh.mean(1, keepdim=True).clamp(min=1e-12)
        if self.saliency is None:
            self.saliency = torch.ones_like(strength.flatten(1))
        # none is dropped for good
        self.saliency.scatter_(1, index, fresh.clamp(min=0.1))

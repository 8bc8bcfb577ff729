# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Blocks of a vision transformer that compute some of their tokens only."""

import re
from contextlib import ExitStack, contextmanager
from typing import (Callable, Dict, Hashable, Iterable, Iterator, List,
                    Mapping, Optional)

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vim_mm.utils.arguments import check_number
from ..recorder import tapping

#: Blocks of mmpretrain's and timm's vision transformers.
BLOCKS = r'(.+\.)?(layers|blocks)\.\d+'
RANDOM, SALIENCY = 'random', 'saliency'


class TokenDropping:
    """A share of the patches takes no part in a step, another one each time.

    The blocks compute the tokens that are kept. The others are as they were
    when they were last computed, wherever they are looked at: as keys and
    values of attention (by torch's ``scaled_dot_product_attention``; another
    one sees the kept tokens alone), in the statistics of norm layers, and in
    what the blocks give. So a loss is that of all tokens, but for what the
    dropped ones have missed since, and its gradient on the pixels of kept
    patches is the one without dropping, but for the way through dropped ones.

    Args:
        share (float): Of the patches that are dropped. Defaults to 0.5.
        until (float): Share of the steps in which they are; the last ones
            see all tokens as they are. Defaults to 0.85.
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
                 until: float = 0.85,
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
        norms (Mapping[str, nn.Module]): Layers whose inputs are asked for
            whole, see :meth:`whole`. Defaults to none.
    """

    def __init__(self,
                 dropping: TokenDropping,
                 backbone: nn.Module,
                 norms: Mapping[str, nn.Module] = {}) -> None:
        self.dropping = dropping
        self.modules = dropping.blocks(backbone)
        inner = {
            part
            for block in self.modules.values() for part in block.modules()
        }
        self.norms = {k: norm for k, norm in norms.items() if norm in inner}
        self.last: Dict[Hashable, Tensor] = {}
        self.kept: Optional[Tensor] = None
        self.saliency: Optional[Tensor] = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Within this context a pass leaves what it computes of all tokens.

        Raises:
            ValueError: If the blocks do not give tokens, once each.
        """
        self.last = {}
        with tapping(self.modules) as seen, \
                tapping(self.norms, inputs=True) as read, \
                _Attention(self.modules.values(), self._keep):
            yield
        for name, calls in seen.items():
            output = calls[0].output if len(calls) == 1 else None
            if not isinstance(output, Tensor) or output.dim() != 3:
                raise ValueError(
                    f'The block {name!r} does not give one tensor of tokens '
                    '(B, L, C) in a pass, so none can be dropped; set '
                    'tokens=None, or `tokens.blocks` to those that do.')
            self.last[name] = output.detach()
        for name, calls in read.items():
            for index, call in enumerate(calls):
                self.last[name, index] = call.args[0].detach()

    def _keep(self, key: Hashable, x: Tensor) -> Tensor:
        self.last[key] = x.detach()
        return x

    def whole(self, key: Hashable, x: Tensor) -> Tensor:
        """All tokens: those of a step, the others as they were last.

        Args:
            key (Hashable): What it is; of the inputs of a norm layer its name
                and which call it is.
            x (Tensor): (..., L, C) of the tokens that are kept; what is not
                known by that key comes back as it is.
        """
        last = self.last.get(key)
        if last is None or x.shape[-2] == last.shape[-2]:
            return x
        index = self.kept[..., None]
        while index.dim() < x.dim():
            index = index[:, None]
        full = last.scatter(-2, index.expand_as(x), x)
        self.last[key] = full.detach()
        return full

    def draw(self, images: Tensor, generators: List[torch.Generator]) -> None:
        """Choose the tokens of the next step, for each image by itself.

        Args:
            images (Tensor): Of the step; their size tells the grid.
            generators (list[torch.Generator]): Of each image.
        """
        length = self.last[next(iter(self.modules))].shape[1]
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
            stack.enter_context(
                _Attention(self.modules.values(), self.whole))
            yield

    def take(self, tokens: Tensor) -> Tensor:
        """The kept ones of all tokens."""
        index = self.kept[..., None].expand(-1, -1, tokens.shape[2])
        return tokens.gather(1, index)

    def _gather(self, _: nn.Module, args: tuple) -> tuple:
        return (self.take(args[0]), *args[1:])

    def _scatter(self, name: str) -> object:

        def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
            return self.whole(name, output)

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


class _Attention(TorchFunctionMode):
    """Within this context attention of blocks reads other keys and values.

    Args:
        blocks (Iterable[nn.Module]): The blocks.
        read (Callable): Called with what a tensor is (which attention, and
            whether keys or values) and the tensor; gives the one to read.
    """

    def __init__(self, blocks: Iterable[nn.Module],
                 read: Callable[[Hashable, Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = list(blocks)
        self.read = read
        self.inside = False
        self.calls = 0

    def __enter__(self) -> '_Attention':
        self.handles = [
            handle for block in self.blocks
            for handle in (block.register_forward_pre_hook(self._enter),
                           block.register_forward_hook(self._leave))
        ]
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)

    def _enter(self, *_: object) -> None:
        self.inside = True

    def _leave(self, *_: object) -> None:
        self.inside = False

    def __torch_function__(self, func: Callable, types: tuple,
                           args: tuple = (),
                           kwargs: Optional[dict] = None) -> object:
        kwargs = kwargs or {}
        if self.inside and func is F.scaled_dot_product_attention:
            query, key, value, *rest = args
            self.calls += 1
            args = (query, self.read((self.calls, 'key'), key),
                    self.read((self.calls, 'value'), value), *rest)
        return func(*args, **kwargs)

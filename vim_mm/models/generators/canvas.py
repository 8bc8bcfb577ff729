# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""What is optimised in place of an image: pixels, a latent, a pyramid.

A canvas starts at guides, RGB images from 0 to 1, and gives images of their
size. What it has learned is the difference from its start, so that a canvas
that has learned nothing gives the guides, bit for bit.
"""

from typing import List, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vim_mm.registry import MODELS
from .upstream_release import load_upstream_release


class _Clip(torch.autograd.Function):
    """Values in 0..1; gradients that lead back into that range pass."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        # descent goes against the gradient
        outwards = ((x < 0) & (grad > 0)) | ((x > 1) & (grad < 0))
        return grad.masked_fill(outwards, 0)


clip = _Clip.apply


class BaseCanvas(nn.Module):
    """Guides, and learned differences from them."""

    def start(self, guides: Tensor, noise: Optional[Tensor] = None) -> None:
        """Begin at guides.

        Args:
            guides (Tensor): (B, 3, H, W), RGB from 0 to 1.
            noise (Tensor, optional): Added to the start; of the same shape,
                in the same units.
        """
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The images, (B, 3, H, W), RGB from 0 to 1."""
        raise NotImplementedError


@MODELS.register_module()
class PixelCanvas(BaseCanvas):
    """Every pixel by itself."""

    def start(self, guides: Tensor, noise: Optional[Tensor] = None) -> None:
        """See :meth:`BaseCanvas.start`."""
        start = guides if noise is None else guides + noise
        self.pixels = nn.Parameter(start.clone())

    def forward(self) -> Tensor:
        """See :meth:`BaseCanvas.forward`."""
        return clip(self.pixels)


@MODELS.register_module()
class PyramidCanvas(BaseCanvas):
    """A sum of levels of halved size, in colours that vary independently.

    One step of a coarse level moves a whole region, and one of the first
    colour its brightness: the optimiser meets an image as photographs are
    distributed, instead of pixels that it has to move one by one. The idea is
    that of Linear Gradient Matching; levels and colours are differences from
    the guide here, and the colours those of the guides.

    Args:
        num_levels (int): Levels, the first one of full size. Defaults to 4.
    """

    def __init__(self, num_levels: int = 4) -> None:
        super().__init__()
        if num_levels < 1:
            raise ValueError(f'`num_levels` is {num_levels}; give a whole '
                             'number, 1 or more.')
        self.num_levels = num_levels

    def start(self, guides: Tensor, noise: Optional[Tensor] = None) -> None:
        """See :meth:`BaseCanvas.start`."""
        self.guides = guides if noise is None else guides + noise
        self.colours = torch.stack([colour_basis(one) for one in guides])
        height, width = guides.shape[2:]
        self.levels = nn.ParameterList(
            nn.Parameter(
                guides.new_zeros(
                    len(guides), 3, max(1, height >> level),
                    max(1, width >> level)))
            for level in range(self.num_levels))

    def forward(self) -> Tensor:
        """See :meth:`BaseCanvas.forward`."""
        size = self.guides.shape[2:]
        total = sum(
            F.interpolate(level, size, mode='bilinear', align_corners=False)
            for level in self.levels)
        change = torch.einsum('bij,bjhw->bihw', self.colours, total)
        return clip(self.guides + change)


def colour_basis(image: Tensor) -> Tensor:
    """Directions in which an image's colours vary independently.

    Args:
        image (Tensor): (3, H, W).

    Returns:
        Tensor: (3, 3); its columns are the principal directions, as long as
        the deviation along each, relative to the largest. None is shorter
        than a tenth: grey images may take colours.
    """
    pixels = image.flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(pixels))
    lengths = values.clamp(min=0).sqrt()
    lengths = lengths / lengths.max().clamp(min=1e-8)
    return (vectors * lengths.clamp(min=0.1)).to(image)


@MODELS.register_module()
class LatentCanvas(BaseCanvas):
    """The latent of an auto-encoder: images that its decoder can make.

    The decoder has seen upstream images, so it is an implicit prior, and
    networks without BatchNorm need none of their own.

    Args:
        release (str | VQAutoEncoder): Folder of an upstream release, or its
            auto-encoder, which is frozen.
        quantize (bool): Whether the decoder sees the nearest codes of the
            latent. Defaults to False.
        residual (bool): Whether what the decoder adds to its first image is
            added to the guide, which keeps detail that the codes lose; or
            images are the decoder's, and start at the re-represented guide.
            Defaults to True.
    """

    def __init__(self,
                 release: Union[str, nn.Module],
                 quantize: bool = False,
                 residual: bool = True) -> None:
        super().__init__()
        if isinstance(release, str):
            release = load_upstream_release(release)
        release.requires_grad_(False)
        release.eval()
        # in a list: it is no part of what learns
        self._held: List[nn.Module] = [release]
        self.quantize = quantize
        self.residual = residual

    @torch.no_grad()
    def start(self, guides: Tensor, noise: Optional[Tensor] = None) -> None:
        """See :meth:`BaseCanvas.start`; noise is added to what is encoded."""
        release = self._held[0].to(guides.device)
        self.size = guides.shape[2:]
        latent = release.encode(guides)
        self.origin = latent
        #: a step is relative to how far latents of an image are apart
        self.scale = latent.flatten(1).std(1).clamp(min=1e-6).view(
            -1, *[1] * (latent.dim() - 1))
        shift = torch.zeros_like(latent)
        self.guides = guides
        self.first = self._decode(latent) if self.residual else None
        if noise is not None:
            shift = (release.encode(guides + noise) - latent) / self.scale
        self.shift = nn.Parameter(shift)

    def _decode(self, latent: Tensor) -> Tensor:
        release = self._held[0]
        if self.quantize:
            latent, _ = release.quantize(latent)
        height, width = self.size
        return release.decode(latent)[..., :height, :width]

    def forward(self) -> Tensor:
        """See :meth:`BaseCanvas.forward`."""
        image = self._decode(self.origin + self.scale * self.shift)
        if self.residual:
            image = self.guides + (image - self.first)
        return clip(image)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
from typing import Dict, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModel
from torch import Tensor, nn

from vim_mm.registry import MODELS
from vim_mm.utils.arguments import check_number, check_width


@MODELS.register_module()
class VQAutoEncoder(BaseModel):
    """An auto-encoder with a codebook, ``G(q(E(x)))``: OTA's upstream release.

    It learns from images alone. Images are RGB in 0..1; any size goes in, and
    the same size comes out. The codebook follows the encoder by moving
    averages, codes that fall out of use start again at vectors of the batch,
    and gradients pass the quantiser straight through. It learns in training
    steps only: passes in eval mode or without gradients change nothing, so
    held-out images leave no trace in it. There is no adversarial and no
    perceptual loss, which is ours, for small scale.

    Needs the package ``vector-quantize-pytorch``.

    Args:
        codebook_size (int): Number of codes. Defaults to 512.
        code_dims (int): Width of a code. Defaults to 64.
        channels (int): Width of encoder and decoder. Defaults to 64.
        downsample (int): Pixels along a side that share a code, a power of
            two: 4 or 8 at small scale. Defaults to 4.
        num_blocks (int): Residual blocks in encoder and in decoder. Defaults
            to 2.
        commitment (float): Weight of the pull of the encoder towards its
            codes. Defaults to 0.25.
        decay (float): Of the codebook's moving averages. Defaults to 0.95.
        dead_below (float): A code that represents fewer vectors of a batch,
            on average, starts again. Defaults to 1.
        data_preprocessor (dict, optional): Gives RGB in 0..1. By default
            BGR images of 0..255 become that.
        init_cfg (dict, optional): mmengine init config. Defaults to None.

    Raises:
        ValueError: If a setting has no meaning, ``downsample`` is no power of
            two, or the package is not installed.
    """

    def __init__(self,
                 codebook_size: int = 512,
                 code_dims: int = 64,
                 channels: int = 64,
                 downsample: int = 4,
                 num_blocks: int = 2,
                 commitment: float = 0.25,
                 decay: float = 0.95,
                 dead_below: float = 1.,
                 data_preprocessor: Optional[dict] = None,
                 init_cfg: Optional[dict] = None) -> None:
        if data_preprocessor is None:
            data_preprocessor = dict(
                type='mmengine.ImgDataPreprocessor',
                mean=[0.] * 3,
                std=[255.] * 3,
                bgr_to_rgb=True)
        super().__init__(data_preprocessor, init_cfg)
        for name, value in dict(
                codebook_size=codebook_size, code_dims=code_dims,
                channels=channels).items():
            check_width(value, name)
        if codebook_size < 2:
            raise ValueError('`codebook_size` is 1, so all images would be '
                             'the same; give more codes.')
        if downsample < 2 or downsample & (downsample - 1):
            raise ValueError(f'downsample={downsample} is no power of two; '
                             'give 4 or 8.')
        check_number(commitment, 'commitment')
        check_number(dead_below, 'dead_below')
        check_number(decay, 'decay', below=1)
        #: What a release says of it, to build it again.
        self.architecture = dict(
            codebook_size=codebook_size,
            code_dims=code_dims,
            channels=channels,
            downsample=downsample,
            num_blocks=num_blocks)
        self.downsample = downsample
        halvings = downsample.bit_length() - 1
        self.encoder = encoder(channels, code_dims, halvings, num_blocks)
        self.decoder = decoder(channels, code_dims, halvings, num_blocks)
        self.quantizer = _quantizer(
            dim=code_dims,
            codebook_size=codebook_size,
            commitment_weight=commitment,
            decay=decay,
            threshold_ema_dead_code=dead_below)

    @property
    def codebook(self) -> Tensor:
        """The codes, (codebook_size, code_dims)."""
        return self.quantizer.codebook

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        # the averages too, from which a training step computes the codes
        book = self.quantizer._codebook
        book.embed.copy_(codes)
        book.embed_avg.copy_(codes)
        book.cluster_size.fill_(1)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, code_dims, h, w) of images (B, 3, H, W).

        Sides that ``downsample`` does not divide are padded at the right and
        the bottom by repeating the border.
        """
        pad = [-side % self.downsample for side in images.shape[-2:]]
        images = F.pad(images, (0, pad[1], 0, pad[0]), mode='replicate')
        return self.encoder(images * 2 - 1)

    def quantize(self, latents: Tensor) -> Tuple[Tensor, Tensor]:
        """The nearest codes of latents, straight-through, and their indices.

        Args:
            latents (Tensor): Shape (B, code_dims, h, w).

        Returns:
            tuple[Tensor, Tensor]: Of the same shape, and (B, h, w).
        """
        quantized, codes, _ = self._quantize(latents)
        return quantized, codes

    def _quantize(self, latents: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        # in training mode the library would learn without gradients, too
        learns = self.training and torch.is_grad_enabled()
        quantized, codes, commitment = self.quantizer(
            latents, freeze_codebook=not learns)
        if not self.training:  # where the library cuts the gradients
            quantized = latents + (quantized - latents).detach()
        return quantized, codes, commitment

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) of latents; may leave 0..1 by a little."""
        return (self.decoder(latents) + 1) / 2

    def reconstruct(self, images: Tensor) -> Tensor:
        """Re-represented images: of the same shape, in 0..1."""
        height, width = images.shape[-2:]
        decoded = self.decode(self.quantize(self.encode(images))[0])
        return decoded[..., :height, :width].clamp(0, 1)

    def forward(self,
                inputs: Tensor,
                data_samples: Optional[list] = None,
                mode: str = 'tensor') -> Union[Tensor, Dict[str, Tensor]]:
        """Losses in the mode 'loss', else re-represented images.

        Args:
            inputs (Tensor): Images (B, 3, H, W), RGB in 0..1.
            data_samples (list, optional): Not looked at: no label is needed.
            mode (str): 'loss', 'predict' or 'tensor'.
        """
        return self.loss(inputs) if mode == 'loss' else self.reconstruct(
            inputs)

    def loss(self, images: Tensor) -> Dict[str, Tensor]:
        """L1 and L2 of the images, commitment; use of the codes to log.

        The codebook has no loss: its moving averages minimise
        ``||sg[E(x)] - z_q||^2``.
        """
        height, width = images.shape[-2:]
        quantized, codes, commitment = self._quantize(self.encode(images))
        decoded = self.decode(quantized)[..., :height, :width]
        return dict(
            loss_l1=F.l1_loss(decoded, images),
            loss_l2=F.mse_loss(decoded, images),
            loss_commitment=commitment,
            **code_use(self.count(codes)))

    def count(self, codes: Tensor) -> Tensor:
        """How often each code stands among indices: (codebook_size, )."""
        return codes.flatten().bincount(minlength=len(self.codebook))


def code_use(counts: Tensor) -> Dict[str, Tensor]:
    """Perplexity of the codes, and the share of them that is in use.

    Args:
        counts (Tensor): How often each code was chosen.
    """
    shares = counts / counts.sum()
    return dict(
        perplexity=torch.special.entr(shares).sum().exp(),
        codes_in_use=(counts > 0).float().mean())


def encoder(channels: int, code_dims: int, halvings: int,
            num_blocks: int) -> nn.Sequential:
    """Strided convolutions, residual blocks, a projection to the codes."""
    widths = [3] + _widths(channels, halvings)
    return nn.Sequential(
        *(ConvModule(a, b, 4, stride=2, padding=1)
          for a, b in zip(widths, widths[1:])),
        *(ResidualBlock(channels) for _ in range(num_blocks)),
        nn.ReLU(inplace=True), nn.Conv2d(channels, code_dims, 1))


def decoder(channels: int, code_dims: int, halvings: int,
            num_blocks: int) -> nn.Sequential:
    """The mirror image of :func:`encoder`."""
    widths = _widths(channels, halvings)[::-1]
    layers = [nn.Conv2d(code_dims, channels, 3, padding=1)]
    layers += [ResidualBlock(channels) for _ in range(num_blocks)]
    for a, b in zip(widths, widths[1:] + [3]):
        layers += [
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)
        ]
    return nn.Sequential(*layers)


def _widths(channels: int, halvings: int) -> list:
    """Half the width at the highest resolution, where it costs most."""
    return [channels // 2] * (halvings > 1) + [channels] * max(
        halvings - 1, 1)


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity.

    Without a norm: a pixel far away, or another image of the batch, must not
    change what is decoded here.

    Args:
        channels (int): Width, kept.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.ReLU(), ConvModule(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convs(x)


def _quantizer(**kwargs) -> nn.Module:
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise ValueError(
            'VQAutoEncoder needs vector-quantize-pytorch, which cannot be '
            f'imported ({error}); pip install vector-quantize-pytorch.'
        ) from error
    # no k-means: the library would fill the codebook in eval mode, from the
    # first images it sees. The rotation trick, its default, may diverge
    return VectorQuantize(
        accept_image_fmap=True,
        kmeans_init=False,
        rotation_trick=False,
        **kwargs)

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Downstream images as the codebook of upstream images knows them."""

from typing import List, Sequence, Union

import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from torch import Tensor

from vim_mm.registry import TRANSFORMS
from vim_mm.utils.arguments import check_positive
from ..pixels import from_images, to_images
from .upstream_release import load_upstream_release
from .vq_autoencoder import VQAutoEncoder


@torch.no_grad()
def re_represent(release: VQAutoEncoder,
                 images: Union[Tensor, Sequence[Tensor]],
                 scale: float = 1.) -> Union[Tensor, List[Tensor]]:
    """Re-represent images as pipelines load them: ``x~ = G(q(E(x)))``.

    Sizes, and with them annotations, stay as they are.

    Args:
        release (VQAutoEncoder): In eval mode.
        images (Tensor | Sequence[Tensor]): BGR grey levels (3, H, W) of any
            sizes, or a batch of them.
        scale (float): Images are enlarged by this factor in between, so that
            a code stands for fewer of their pixels and more detail comes
            back. Defaults to 1.

    Returns:
        Tensor | list[Tensor]: The same, rounded to whole grey levels, on the
        images' devices.
    """
    device = release.codebook.device
    sizes = [image.shape for image in images]
    result: List[Tensor] = list(images)
    for size in set(sizes):  # a pass for each size
        places = [i for i, other in enumerate(sizes) if other == size]
        batch = to_images(torch.stack([images[i] for i in places]).to(device))
        if scale != 1:
            enlarged = [max(1, round(side * scale)) for side in size[-2:]]
            batch = _resize(batch, enlarged)
        decoded = release.reconstruct(batch.clamp(0, 1))
        if scale != 1:
            decoded = _resize(decoded, size[-2:])
        decoded = from_images(decoded)
        for place, image in zip(places, decoded):
            result[place] = image.to(images[place])
    return torch.stack(result) if isinstance(images, Tensor) else result


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(
        images, size=tuple(size), mode='bicubic', antialias=True)


@TRANSFORMS.register_module()
class ReRepresent(BaseTransform):
    """Replace an image by its re-representation; annotations stay valid.

    Runs on the CPU, wherever the pipeline does. mmcv's ``RandomApply`` around
    it gives a share of re-represented images among original ones.

    Required Keys: img. Modified Keys: img.

    Args:
        release (str): Folder of an upstream release.
        scale (float): See :func:`re_represent`. Defaults to 1.

    Raises:
        ValueError: If the scale is not above 0.
    """

    def __init__(self, release: str, scale: float = 1.) -> None:
        check_positive(scale, 'ReRepresent.scale')
        self.folder = release
        self.scale = scale
        self.release = load_upstream_release(release)

    def transform(self, results: dict) -> dict:
        """Change the image (H, W, 3), BGR.

        Raises:
            ValueError: If it is not loaded.
        """
        if 'img' not in results:
            raise ValueError('ReRepresent has no image to change; put it '
                             'after LoadImageFromFile.')
        image = torch.from_numpy(results['img'].copy()).permute(2, 0, 1)
        changed = re_represent(self.release, [image], self.scale)[0]
        results['img'] = changed.permute(1, 2, 0).contiguous().numpy()
        return results

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(release={self.folder!r}, '
                f'scale={self.scale})')

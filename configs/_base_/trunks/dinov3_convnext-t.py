# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DINOv3 ConvNeXt-T: four stages, 28 M parameters.

Weights, under the DINOv3 licence of Meta, are the file ``model.safetensors``
of ``timm/convnext_tiny.dinov3_lvd1689m``, which the user brings as
``weights/dinov3_convnext-t.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Images have any size. The four maps have strides of 4, 8, 16 and 32.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='convnext_tiny',
    features_only=True,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/dinov3_convnext-t.safetensors')
)

# ImageNet statistics, RGB
trunk_normalization = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DINOv3 ViT-S+/16: 12 blocks, 384 wide, SwiGLU, 29 M parameters.

Weights, under the DINOv3 licence of Meta, are the file ``model.safetensors``
of ``timm/vit_small_plus_patch16_dinov3.lvd1689m``, which the user brings as
``weights/dinov3_vit-splus16.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 16; nothing is resized for them. Raw maps of
four blocks come out, all of stride 16.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_small_plus_patch16_dinov3',
    features_only=True,
    out_indices=(2, 5, 8, 11),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/dinov3_vit-splus16.safetensors'
    ))

# ImageNet statistics, RGB
trunk_normalization = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])

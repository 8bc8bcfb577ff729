# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DINOv2 ViT-B/14 with four registers: 12 blocks, 768 wide, 87 M parameters.

Weights, under Apache-2.0, are the file ``model.safetensors`` of
``timm/vit_base_patch14_reg4_dinov2.lvd142m``, which the user brings as
``weights/dinov2-reg_vit-b14.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 14; the position embedding is resized to them
while the trunk runs (``dynamic_img_size``). Raw maps of four blocks come out,
all of stride 14.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_base_patch14_reg4_dinov2',
    features_only=True,
    dynamic_img_size=True,
    out_indices=(2, 5, 8, 11),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/dinov2-reg_vit-b14.safetensors'
    ))

# ImageNet statistics, RGB
trunk_normalization = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])

# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""TIPSv2 ViT-B/14: 12 blocks, 768 wide, one register, 86 M parameters.

Weights, under Apache-2.0, are the file ``model.safetensors`` of
``timm/vit_base_patch14_reg1_tipsv2.webli``, which the user brings as
``weights/tipsv2_vit-b14.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 14; the position embedding is resized to them
while the trunk runs (``dynamic_img_size``). Raw maps of four blocks come out,
all of stride 14.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_base_patch14_reg1_tipsv2',
    features_only=True,
    dynamic_img_size=True,
    out_indices=(2, 5, 8, 11),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/tipsv2_vit-b14.safetensors'))

# Images in 0..1, RGB
trunk_normalization = dict(mean=[0.] * 3, std=[255.] * 3)

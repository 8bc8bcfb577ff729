# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""SigLIP2 ViT-B/16: 12 blocks, 768 wide, no class token, 93 M parameters.

Weights, under Apache-2.0, are the file ``model.safetensors`` of
``timm/vit_base_patch16_siglip_256.v2_webli``, which the user brings as
``weights/siglip2_vit-b16.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 16; the position embedding is resized to them
while the trunk runs (``dynamic_img_size``). Raw maps of four blocks come out,
all of stride 16.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_base_patch16_siglip_256',
    features_only=True,
    dynamic_img_size=True,
    out_indices=(2, 5, 8, 11),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/siglip2_vit-b16.safetensors'))

# Images in -1..1, RGB
trunk_normalization = dict(mean=[127.5] * 3, std=[127.5] * 3)

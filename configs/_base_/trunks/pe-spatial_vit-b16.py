# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""PE spatial ViT-B/16: 12 blocks, 768 wide, 86 M parameters.

Weights, under Apache-2.0, are the file ``model.safetensors`` of
``timm/vit_pe_spatial_base_patch16_512.fb``, which the user brings as
``weights/pe-spatial_vit-b16.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 16; the position embedding is resized to them
while the trunk runs (``dynamic_img_size``). Raw maps of four blocks come out,
all of stride 16.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_pe_spatial_base_patch16_512',
    features_only=True,
    dynamic_img_size=True,
    out_indices=(2, 5, 8, 11),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/pe-spatial_vit-b16.safetensors'
    ))

# Images in -1..1, RGB
trunk_normalization = dict(mean=[127.5] * 3, std=[127.5] * 3)

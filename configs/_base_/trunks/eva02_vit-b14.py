# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""EVA-02 ViT-B/14: 12 blocks, 768 wide, 86 M parameters.

Weights, under MIT, are the file ``model.safetensors`` of
``timm/eva02_base_patch14_448.mim_in22k_ft_in22k_in1k``, which the user brings
as ``weights/eva02_vit-b14.safetensors``; it is loaded as it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 14; the position embedding is resized to them
while the trunk runs (``dynamic_img_size``). Raw maps of four blocks come out,
all of stride 14.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='eva02_base_patch14_448',
    features_only=True,
    dynamic_img_size=True,
    out_indices=(2, 5, 8, 11),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/eva02_vit-b14.safetensors'))

# CLIP's statistics, RGB
trunk_normalization = dict(
    mean=[122.7709, 116.7460, 104.0937], std=[68.5005, 66.6322, 70.3232])

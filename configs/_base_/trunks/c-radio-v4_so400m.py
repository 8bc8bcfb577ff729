# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""C-RADIO v4 SO400M/16: 27 blocks, 1152 wide, 413 M parameters.

Weights, under the NVIDIA Open Model Licence, are the file
``model.safetensors`` of ``timm/vit_so400m_patch16_radio_v4.c_radio``, which
the user brings as ``weights/c-radio-v4_so400m.safetensors``; it is loaded as
it is.
Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Sides of images are multiples of 16; the position embedding is resized to them
while the trunk runs (``dynamic_img_size``). NVIDIA's own code crops it, as
timm does while it reads NVIDIA's own file for one ``img_size``. Raw maps of
four blocks come out, all of stride 16.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='vit_so400m_patch16_radio_v4',
    features_only=True,
    dynamic_img_size=True,
    out_indices=(6, 13, 20, 26),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/c-radio-v4_so400m.safetensors'
    ))

# CLIP's statistics, RGB
trunk_normalization = dict(
    mean=[122.7709, 116.7460, 104.0937], std=[68.5005, 66.6322, 70.3232])

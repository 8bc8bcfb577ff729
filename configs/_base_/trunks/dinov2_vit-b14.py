# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""DINOv2 ViT-B/14: 12 blocks, 768 wide, 87 M parameters.

Weights, Apache-2.0, by facebookresearch (``dinov2_vitb14_pretrain.pth``) or
Hugging Face (``facebook/dinov2-base``, ``model.safetensors``), which the user
brings:

    python tools/model_converters/convert_trunk.py dinov2 \\
        dinov2_vitb14_pretrain.pth weights/dinov2_vit-b14.safetensors

All else is said in ``dinov2_vit-s14.py``.
"""

_base_ = './dinov2_vit-s14.py'

trunk = dict(
    arch='base',
    init_cfg=dict(
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/dinov2_vit-b14.safetensors'))

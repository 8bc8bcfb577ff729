# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ViT-B/16 of timm or transformers: 12 blocks, 768 wide, 86 M parameters.

Weights by timm (``vit_base_patch16_224.augreg_in21k``, ``model.safetensors``),
which the user brings; a classifier in the file is left out:

    python tools/model_converters/convert_trunk.py timm-vit \\
        model.safetensors weights/vit-b16.safetensors

Those of transformers (``google/vit-base-patch16-224-in21k``) are converted as
``vit``; their norms add less to the variance, so override in
``model.backbone`` ``trunk=dict(norm_cfg=dict(type='LN', eps=1e-12))``.
Variants with LayerScale, registers or norms of queries do not fit.

Set ``VIM_MM_WEIGHTS`` to keep weights in another folder. The position
embedding (14 x 14) is resized (bicubic) to every image while the trunk runs.
Sides of images should be multiples of 16.

For dense heads: raw maps of four blocks. The file's ``ln1.*`` are then
reported as unexpected keys, which is right. For classification override in
``model.backbone``:
``trunk=dict(out_indices=11, out_type='cls_token', final_norm=True)``.
"""

trunk = dict(
    type='mmpretrain.VisionTransformer',
    arch='base',
    img_size=224,
    patch_size=16,
    out_indices=(2, 5, 8, 11),
    out_type='featmap',
    final_norm=False,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/vit-b16.safetensors'))

# statistics of the AugReg weights; DeiT has those of ImageNet
trunk_normalization = dict(
    mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])

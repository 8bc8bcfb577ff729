# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""CLIP ViT-B/16, the visual tower: 12 blocks, 768 wide, 86 M parameters.

Weights, MIT, by OpenAI (``ViT-B-16.pt``, a TorchScript archive, which takes
``--trust`` because it carries code) or Hugging Face
(``openai/clip-vit-base-patch16``, ``model.safetensors``), which the user
brings:

    python tools/model_converters/convert_trunk.py clip \\
        model.safetensors weights/clip_vit-b16.safetensors

Set ``VIM_MM_WEIGHTS`` to keep weights in another folder. CLIP of other
publishers (LAION, DataComp) fits too, but was mostly trained with plain GELU:
convert it as ``clip-gelu`` and override in ``model.backbone``
``trunk=dict(layer_cfgs=dict(act_cfg=dict(type='GELU')))``.

The position embedding (14 x 14) is resized (bicubic) to every image while
the trunk runs. Sides of images should be multiples of 16.

For dense heads: raw maps after the blocks that ViM takes. The file's ``ln1.*``
(CLIP's ``ln_post``) are then reported as unexpected keys, which is right. For
classification override in ``model.backbone``:
``trunk=dict(out_indices=11, out_type='cls_token', final_norm=True)``.
CLIP's projection 768 -> 512 is not in the file.
"""

trunk = dict(
    type='mmpretrain.VisionTransformer',
    arch='base',
    img_size=224,
    patch_size=16,
    pre_norm=True,
    norm_cfg=dict(type='LN', eps=1e-5),
    layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
    out_indices=(3, 5, 7, 11),
    out_type='featmap',
    final_norm=False,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/clip_vit-b16.safetensors'))

# CLIP's own statistics, RGB
trunk_normalization = dict(
    mean=[122.7709, 116.7460, 104.0937], std=[68.5005, 66.6322, 70.3232])

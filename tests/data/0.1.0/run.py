# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# A downstream run of version 0.1.0: two modules of `zoo/`, a new one beside
# them and an Ens-MoE over all three. Paths are relative to this folder.
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[127.] * 3,
        std=[64.] * 3,
        num_classes=2,
        to_rgb=True),
    backbone=dict(
        type='vim_mm.ViMBackbone',
        trunk=dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(
                embed_dims=16,
                num_layers=2,
                num_heads=2,
                feedforward_channels=32),
            img_size=16,
            patch_size=4,
            out_type='featmap',
            out_indices=[0, 1],
            final_norm=False,
            init_cfg=dict(type='Pretrained', checkpoint='trunk.safetensors')),
        probe_size=16,
        zoo='zoo',
        modules=['first', 'second'],
        new_module='new',
        adapter=dict(
            type='ConvPass', hidden_dims=4, slots=r'layers\.\d+\.attn'),
        fusion=dict(type='EnsMoE')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=16,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0)))
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_prefix='images',
        pipeline=[dict(type='LoadImageFromFile'),
                  dict(type='PackInputs')]))
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=train_dataloader['dataset'])
test_evaluator = dict(type='Accuracy', topk=1)
test_cfg = dict()
train_cfg = dict(by_epoch=False, max_iters=4)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=0.01), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2)
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4))
custom_hooks = [
    dict(type='EMAHook', momentum=0.2, update_buffers=True),
    dict(type='vim_mm.GateLogHook', interval=2)
]
log_processor = dict(by_epoch=False)
log_level = 'WARNING'
randomness = dict(seed=0)
work_dir = 'work_dir'

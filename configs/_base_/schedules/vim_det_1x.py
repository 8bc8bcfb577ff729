# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# mmdet's 1x schedule with AdamW.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

# modules take longer steps than heads, gates (in a softmax) longer ones still
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            'backbone.bank': dict(lr_mult=5., decay_mult=0.),
            'backbone.fusion': dict(lr_mult=50., decay_mult=0.)
        },
        norm_decay_mult=0.),
    clip_grad=dict(max_norm=1.))

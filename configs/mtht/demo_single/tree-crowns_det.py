_base_ = [
    '../../_base_/models/demo_det.py',
    '../../_base_/datasets/demo/tree_crowns.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(backbone=dict(_delete_=True, **trunk))

train_dataloader = dict(batch_size=4)
custom_hooks = [dict(type='vim_mm.WarmHeadHook', epochs=6)]

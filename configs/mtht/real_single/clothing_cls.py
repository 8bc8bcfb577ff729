_base_ = [
    '../../_base_/models/demo_cls.py',
    '../../_base_/datasets/real/clothing.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(
    backbone=dict(_delete_=True, **trunk),
    neck=dict(num_extra_tokens=0))

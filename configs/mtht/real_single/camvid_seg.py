_base_ = [
    '../../_base_/models/demo_seg.py',
    '../../_base_/datasets/real/camvid.py',
    '../../_base_/schedules/mtht_demo.py',
]

trunk = _base_.trunk
trunk.update(out_indices=(5, 8, 11), out_type='featmap', final_norm=True)
model = dict(
    backbone=dict(_delete_=True, **trunk),
    # the base's weights are for digits, which cover little of an image
    decode_head=dict(
        num_classes=11,
        loss_decode=dict(
            _delete_=True, type='mmseg.CrossEntropyLoss')))

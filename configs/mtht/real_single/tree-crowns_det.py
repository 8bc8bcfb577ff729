_base_ = '../demo_single/tree-crowns_det.py'

train_dataloader = dict(batch_size=2)

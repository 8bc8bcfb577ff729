# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# mmcv's transforms register only when they are imported
from mmcv import transforms  # noqa: F401

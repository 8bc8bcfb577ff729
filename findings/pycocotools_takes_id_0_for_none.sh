#!/usr/bin/env bash
# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
# pycocotools 2.0.11: `COCOeval` keeps the ids of the annotations that were found, 0 for
# none, so an annotation whose id is 0 counts as missed, and what finds it as a false alarm.
#
# Seen: perfect boxes of four objects have an AP of 1.0 with ids from 1, and less with ids from 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q pycocotools==2.0.11 numpy==2.2.6
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

assert version('pycocotools') == '2.0.11'


def precision(first: int) -> float:
    """The AP of perfect boxes, if ids of annotations begin at a number."""
    boxes = [[10, 10, 20, 20], [40, 40, 30, 30], [5, 60, 20, 30], [60, 5, 9, 9]]
    truth = COCO()
    truth.dataset = dict(
        images=[dict(id=1, width=100, height=100)],
        categories=[dict(id=1, name='cat')],
        annotations=[
            dict(id=first + i, image_id=1, category_id=1, bbox=box,
                 area=box[2] * box[3], iscrowd=0)
            for i, box in enumerate(boxes)
        ])
    with redirect_stdout(StringIO()):
        truth.createIndex()
        found = truth.loadRes([
            dict(image_id=1, category_id=1, bbox=box, score=.9)
            for box in boxes
        ])
        judge = COCOeval(truth, found, 'bbox')
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


for first in (1, 0):
    print(f'ids from {first}: AP {precision(first):.3f}')
assert precision(1) > .999 and precision(0) < .9, 'it has changed'
EOF

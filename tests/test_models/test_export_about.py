# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The metadata of an ONNX file builds a pipeline and nothing else."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from _hostile import JSON_FILES, judged, odd_json

from vim_mm.models.export.about import OnnxFileError, read_about

GOOD = dict(
    kind='cls',
    classes=['a', 'b'],
    activation='softmax',
    channels='rgb',
    data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor', mean=[0.]),
    pipeline=[dict(type='LoadImageFromFile'),
              dict(type='mmpretrain.PackInputs')])


def session(**about: Any) -> Any:
    plain = ('kind', 'channels')
    found = {
        key: value if key in plain else json.dumps(value)
        for key, value in dict(GOOD, **about).items()
    }
    meta = SimpleNamespace(custom_metadata_map=found)
    return SimpleNamespace(get_modelmeta=lambda: meta)


def test_what_we_wrote_is_read() -> None:
    assert read_about(session(), 'x.onnx') == GOOD
    with pytest.raises(OnnxFileError, match='neither its kind'):
        read_about(session(kind='pose'), 'x.onnx')


@pytest.mark.parametrize('about, reason', [
    (dict(pipeline=[dict(type='os.getcwd')]), "names the type 'os.getcwd'"),
    (dict(pipeline=[dict(type='getcwd')]), 'names the type'),
    (dict(pipeline=[dict(type='mmpretrain.ResNet')]), 'names the type'),
    (dict(pipeline=[dict()]), 'has the stage'),
    (dict(pipeline=[[]]), 'has the stage'),
    (dict(data_preprocessor=dict(type='os.getcwd')), 'names the type'),
    (dict(data_preprocessor=dict(a=dict(type='os.getcwd'))), 'the type'),
    (dict(data_preprocessor=[]), 'its data_preprocessor is'),
    (dict(classes='ab'), "its classes is 'ab'"),
    (dict(classes=[1]), 'no names'),
    (dict(activation=3), 'its activation is 3'),
    (dict(kind='det'), 'its decoder is None'),
    (dict(kind='seg'), 'its align_corners is None'),
])
def test_what_would_build_something_else_is_refused(about: dict,
                                                    reason: str) -> None:
    with pytest.raises(OnnxFileError, match=reason):
        read_about(session(**about), 'x.onnx')


def test_any_metadata_is_read_or_refused() -> None:
    contents = [(what, content) for what, content in odd_json(GOOD)
                if isinstance(content.get('kind'), str)]
    for what, content in contents:
        with judged() as verdict:
            read_about(session(**content), 'x.onnx')
        assert not verdict.problem, what
    for what, text in JSON_FILES.items():
        found = session()
        found.get_modelmeta().custom_metadata_map['classes'] = text.decode(
            'utf-8', 'replace')
        with judged() as verdict:
            read_about(found, 'x.onnx')
        assert (verdict.error or what == 'list') and not verdict.problem, what

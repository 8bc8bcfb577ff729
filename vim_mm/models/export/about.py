# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The metadata of an ONNX file, which may be a stranger's."""

from typing import Any, Dict

from mmengine.registry import TRANSFORMS

from vim_mm.utils.checksum import NAME
from vim_mm.utils.kinds import KINDS
from vim_mm.utils.messages import InputError, short
from vim_mm.utils.plain_config import check_config
from vim_mm.utils.reading import JSON_BYTES, ReadError, parse_json

#: Metadata that is text; the rest is JSON.
PLAIN = ('kind', 'channels', 'producer', NAME)
#: Type of what every file has, and files of a kind.
_TYPES = dict(classes=list, data_preprocessor=dict, pipeline=list)
_OF_KIND = dict(
    cls=dict(activation=str),
    seg=dict(align_corners=bool),
    det=dict(decoder=dict))


class OnnxFileError(InputError):
    """An ONNX file that is none of ours, or damaged."""


def read_about(session: Any, file: str) -> Dict[str, Any]:
    """The metadata of a file of ours.

    Args:
        session (onnxruntime.InferenceSession): The open file.
        file (str): Its name, for messages.

    Raises:
        OnnxFileError: If it has none, or one that would build something else
            than a data preprocessor and a test pipeline.
    """
    found = session.get_modelmeta().custom_metadata_map
    if found.get('kind') not in KINDS:
        raise OnnxFileError(
            f"'{file}' says neither its kind of task nor its classes; make it "
            'with `vim-mm export`.')
    try:
        about = {
            key: value if key in PLAIN else _parse(value)
            for key, value in found.items()
        }
        _check(about)
    except ValueError as error:
        raise OnnxFileError(f"The metadata of '{file}' cannot be used: "
                            f'{error}; make it again with `vim-mm export`.'
                            ) from None
    return about


def _parse(text: str) -> Any:
    if len(text) > JSON_BYTES:
        raise ReadError(f'it has {len(text):,} characters')
    return parse_json(text)


def _check(about: Dict[str, Any]) -> None:
    for key, kind in dict(_TYPES, **_OF_KIND[about['kind']]).items():
        if not isinstance(about.get(key), kind):
            raise ValueError(f'its {key} is {short(about.get(key))}')
    if not all(isinstance(name, str) for name in about['classes']):
        raise ValueError('its classes are no names')
    check_config(about['data_preprocessor'], 'its data_preprocessor')
    for stage in about['pipeline']:
        if not isinstance(stage, dict) or 'type' not in stage:
            raise ValueError(f'its pipeline has the stage {short(stage)}')
        check_config(stage, 'its pipeline', (TRANSFORMS, ))

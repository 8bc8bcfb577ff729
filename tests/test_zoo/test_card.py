# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict

from vim_mm.zoo import ModuleCard, ZooError

SHA = 'a' * 64
names = st.from_regex(r'[A-Za-z0-9][A-Za-z0-9_-]{0,20}', fullmatch=True)
slots = st.lists(
    st.from_regex(r'[a-z_]{1,5}(\.[0-9a-z_]{1,4}){0,3}', fullmatch=True),
    min_size=1,
    max_size=4,
    unique=True)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
jsons = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(), inner, max_size=3),
    max_leaves=5)
dicts = st.dictionaries(st.text(), jsons, max_size=3)
sizes = st.integers(1, 10**6)


@st.composite
def cards(draw):
    own = draw(slots)
    kind = draw(st.from_regex(r'[A-Za-z]{1,8}', fullmatch=True))
    return ModuleCard(
        name=draw(names),
        kind=kind,
        adapter=dict(draw(dicts), type=f'scope.{kind}'),
        slots=own,
        dims={
            slot: draw(sizes | st.lists(sizes, min_size=1, max_size=3))
            for slot in own
        },
        trunk=dict(
            draw(dicts), type=draw(st.text()), fingerprint=draw(st.text())),
        task=draw(st.sampled_from(['det', 'seg', 'cls', None])),
        dataset=draw(st.none() | st.text()),
        num_train=draw(st.none() | st.integers(0)),
        metrics=draw(
            st.lists(
                st.fixed_dictionaries(
                    dict(name=st.text(), value=numbers, n=st.integers(0))),
                max_size=2)),
        licence=draw(st.none() | st.text()),
        version=draw(st.text()),
        training=draw(dicts),
        num_params=draw(st.integers(0)),
        sha256=SHA,
        head_sha256=draw(st.sampled_from([None, 'b' * 64])))


@settings(max_examples=30, deadline=None)
@given(cards())
def test_json_round_trip(card):
    again = ModuleCard.from_json(card.to_json())
    assert again == card
    assert again.to_json() == card.to_json()


def test_config_dicts_and_tuples_become_plain_json(make_card):
    card = make_card(
        sha256=SHA,
        adapter=ConfigDict(type='ConvPass', hidden_dims=2, kernel=(3, 3)))
    assert type(card.adapter) is dict
    assert card.adapter['kernel'] == [3, 3]
    assert ModuleCard.from_json(card.to_json()) == card


@pytest.mark.parametrize('name', [
    '', '.', '..', '../m', 'a/b', 'a\\b', '/etc', '.hidden', 'm\n', 'ünï',
    'a b', 'a' * 101, None, 3
])
def test_unsafe_names_are_refused(make_card, name):
    with pytest.raises(ZooError, match='cannot name a module|cannot be writ'):
        make_card(name=name)


@pytest.mark.parametrize('change, reason', [
    (dict(slots=[]), 'names no slot'),
    (dict(slots=['a', 'a'], dims=dict(a=1)), 'names a slot twice'),
    (dict(slots=['../a'], dims={'../a': 1}), 'not the name of a submodule'),
    (dict(slots=['a'], dims=dict(b=1)), 'name different slots'),
    (dict(slots=['a'], dims=dict(a=0)), 'not positive integers'),
    (dict(slots=['a'], dims=dict(a=True)), 'not positive integers'),
    (dict(slots=['a'], dims=dict(a=[])), 'not positive integers'),
    (dict(kind='LoRA'), "its kind is 'LoRA' but its adapter"),
    (dict(adapter=dict()), 'its adapter has the type None'),
    (dict(trunk=dict(type='T')), "its 'trunk' lacks 'fingerprint'"),
    (dict(task='pose'), "its task is 'pose', not one of cls, det, seg"),
    (dict(metrics=[dict(name='AP', value=1.)]), 'the number of test images'),
    (dict(metrics=[dict(name='AP', value=float('nan'), n=1)]),
     'cannot be written as JSON'),
    (dict(training=dict(hook=print)), 'cannot be written as JSON'),
    (dict(num_train=-1), "its 'num_train' is negative"),
    (dict(num_train='many'), "its 'num_train' is 'many'"),
    (dict(num_params=True), "its 'num_params' is True"),
    (dict(sha256='../../x'), 'is not a sha256'),
    (dict(version=1), "its 'version' is 1"),
])
def test_wrong_fields_are_refused_with_a_sentence(make_card, change, reason):
    with pytest.raises(ZooError, match=re.escape(reason)) as caught:
        make_card(**change)
    assert "module 'm'" in str(caught.value)


@pytest.mark.parametrize('key', [
    'name', 'kind', 'adapter', 'slots', 'dims', 'trunk', 'num_params',
    'sha256'
])
def test_missing_field_is_named(make_card, key):
    data = make_card(sha256=SHA).to_dict()
    del data[key]
    with pytest.raises(ZooError, match=f"lacks '{key}'"):
        ModuleCard.from_dict(data)


@pytest.mark.parametrize('version', [2, 0, '1', None, True])
def test_unknown_format_is_refused(make_card, version):
    data = dict(make_card(sha256=SHA).to_dict(), format_version=version)
    with pytest.raises(ZooError, match='reads 1'):
        ModuleCard.from_dict(data)


def test_newer_fields_are_ignored_with_a_warning(make_card):
    card = make_card(sha256=SHA)
    with pytest.warns(UserWarning, match='ignores: colour'):
        again = ModuleCard.from_dict(dict(card.to_dict(), colour='red'))
    assert again == card


@pytest.mark.parametrize('text', [
    '', '{', '[]', 'null', b'\xff\xfe\x00', '[' * 100000,
    '{"format_version": 1, "name": NaN}'
])
def test_what_is_no_card_is_refused(text):
    with pytest.raises(ZooError):
        ModuleCard.from_json(text)


def test_replace_checks_again(make_card):
    with pytest.raises(ZooError, match='cannot name a module'):
        replace(make_card(), name='../up')


def test_json_is_readable(make_card):
    text = make_card(dataset='Zürich').to_json()
    assert 'Zürich' in text and text.startswith('{\n  "name": "m"')
    assert list(json.loads(text))[0] == 'name'

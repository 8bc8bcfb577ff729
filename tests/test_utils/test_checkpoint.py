# Copyright (c) vim_mm contributors. Licensed under Apache-2.0.
"""Checkpoints load through mmengine, and no file gets to run code."""

import io
import logging
import os
import pickle
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Iterator
from urllib.error import URLError

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.model import BaseModel
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import CheckpointLoader, Runner
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vim_mm.apis.new_task.own_trunk import known_trunks
from vim_mm.utils import checkpoint
from vim_mm.utils.cli import is_user_error
from vim_mm.utils.downloads import DownloadError
from vim_mm.utils.files import shipped
from vim_mm.utils.setup_env import prepare_stack

STATE = {'a.weight': torch.arange(6.).view(2, 3), 'b': torch.tensor([1, 2])}


class Exploit:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target), )


class Toy(BaseModel):
    """A linear fit with a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, mode: str = 'tensor') -> Any:
        y = self.fc(self.norm(x))
        return dict(loss=y.square().mean()) if mode == 'loss' else y

    def train_step(self, data: Tensor, optim_wrapper: Any) -> Dict:
        losses = self(torch.stack(list(data)), mode='loss')
        total, log_vars = self.parse_losses(losses)
        optim_wrapper.update_params(total)
        return log_vars


def toy_runner(work_dir: Path, iters: int, name: str, **kwargs) -> Runner:
    torch.manual_seed(0)
    data = torch.randn(8, 3)
    return Runner(
        model=Toy(),
        work_dir=str(work_dir),
        experiment_name=name,
        train_dataloader=DataLoader(list(data), batch_size=4),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='LinearLR', by_epoch=False, end=9),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False),
            logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='EMAHook')],
        randomness=dict(seed=0),
        default_scope='mmengine',
        **kwargs)


def load(path: Any) -> Any:
    return CheckpointLoader.load_checkpoint(str(path), 'cpu')


def assert_same(a: Dict[str, Tensor], b: Dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / 'x.safetensors')
    assert_same(load(tmp_path / 'x.safetensors')['state_dict'], STATE)
    on_meta = CheckpointLoader.load_checkpoint(
        str(tmp_path / 'x.safetensors'), torch.device('meta'))
    assert on_meta['state_dict']['b'].device.type == 'meta'


@pytest.mark.parametrize('suffix', ['safetensors', 'pth'])
@pytest.mark.parametrize('keep', [0, 5, 40, 0.25, 0.5, 0.9, -1])
def test_truncated_files_give_a_sentence(tmp_path: Path, suffix: str,
                                         keep: float) -> None:
    path = tmp_path / f'x.{suffix}'
    (save_file if suffix == 'safetensors' else torch.save)(STATE, path)
    blob = path.read_bytes()
    path.write_bytes(blob[:int(keep * len(blob)) if 0 < keep < 1 else keep])
    with pytest.raises(checkpoint.CheckpointError, match='is truncated or no'):
        load(path)


@pytest.mark.parametrize('legacy', [True, False])
def test_changed_bytes_give_a_sentence(tmp_path: Path, legacy: bool) -> None:
    """Or another tensor: what is not a tensor raises errors of any kind."""
    path = tmp_path / 'x.pth'
    payload = dict(
        meta=dict(epoch=1, text='text'), state_dict=STATE, array=np.eye(2))
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    blob, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        changed = bytearray(blob)
        start = rng.integers(len(blob) - 4)
        changed[start:start + 4] = rng.bytes(4)
        path.write_bytes(changed)
        try:
            load(path)
        except checkpoint.CheckpointError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


def test_folders_of_deepspeed(tmp_path: Path) -> None:
    """All weights lie in one file, or in parts."""
    state = dict(module=dict(weight=torch.ones(2)), meta=dict(iter=4))
    folder = tmp_path / 'iter_4.pth'
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match='no checkpoint file.*iter_4'):
        load(folder)
    torch.save(state, folder / 'zero_pp_rank_0_mp_rank_00_model_states.pt')
    said = rf'in parts.*zero_to_fp32.py {tmp_path} JOINED --tag iter_4'
    with pytest.raises(checkpoint.CheckpointError, match=said):
        load(folder)
    file = folder / 'mp_rank_00_model_states.pt'
    torch.save(state, file)
    for path in (folder, file):
        found = load(path)
        assert found.keys() == {'state_dict', 'meta'}
        assert torch.equal(found['state_dict']['weight'], torch.ones(2))


@pytest.mark.parametrize('name', ['no.pth', 'no.safetensors'])
def test_missing_files_give_a_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f'no checkpoint file.*{name}'):
        load(tmp_path / name)


@pytest.mark.parametrize('name', known_trunks())
def test_missing_weights_of_our_trunks_say_where_they_are_from(
        tmp_path: Path, name: str) -> None:
    said = f'get it as the first lines of .*{name}.py say'
    with pytest.raises(FileNotFoundError, match=said):
        load(tmp_path / f'{name}.safetensors')
    about = shipped('configs') / f'_base_/trunks/{name}.py'
    assert f'weights/{name}.safetensors' in about.read_text()


def test_a_file_changes_no_statistics(tmp_path: Path) -> None:
    """A buffer brings some along, for all buffers of the process."""
    own = dict(HistoryBuffer()._statistics_methods)
    for given in (dict(mean='text'), dict(mean=HistoryBuffer.min),
                  dict(own, x=3), {}):
        buffer = HistoryBuffer([1, 2], [1, 1])
        state = dict(vars(buffer), statistics_methods=given)
        path = tmp_path / 'x.pth'
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HistoryBuffer, '__getstate__', lambda _: state)
            torch.save(dict(a=buffer), path)
        assert load(path)['a'].statistics('mean') == 1.5
        assert HistoryBuffer._statistics_methods == own


def test_payload_of_training_loads(tmp_path: Path) -> None:
    buffer = HistoryBuffer([1, 2, 3], [1, 1, 1])
    numbers = [np.float64(0.5), np.int64(3), np.float32(2), np.bool_(True)]
    torch.save(
        dict(
            state_dict=STATE,
            buffer=buffer,
            array=np.eye(2),
            empty=np.ones(0),
            numbers=numbers,
            tags=(slice(1), {1}, None)), tmp_path / 'x.pth')
    loaded = load(tmp_path / 'x.pth')
    assert_same(loaded['state_dict'], STATE)
    assert loaded['buffer'].mean() == 2
    assert loaded['buffer'].statistics('max') == 3
    assert np.array_equal(loaded['array'], np.eye(2))
    assert loaded['numbers'] == numbers


@pytest.mark.parametrize('kind', [
    dict(type='OneCycleLR', eta_max=1., total_steps=9),
    dict(type='OneCycleLR', eta_max=1., total_steps=9,
         anneal_strategy='linear'),
    dict(type='CosineAnnealingLR', T_max=9),
    dict(type='PolyLR'), dict(type='MultiStepLR', milestones=[1, 2])],
    ids=str)
def test_schedules_go_on_where_they_were(tmp_path: Path, kind: dict) -> None:

    def schedule() -> Any:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], .1)
        return PARAM_SCHEDULERS.build(dict(kind, optimizer=optimizer))

    first, second = schedule(), schedule()
    for _ in range(3):
        first.optimizer.step()
        first.step()
    torch.save([first.state_dict()], tmp_path / 'x.pth')
    second.load_state_dict(load(tmp_path / 'x.pth')[0])
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for each in (first, second):
        each.optimizer.step()
        each.step()
    assert first.get_last_value() == second.get_last_value()


def test_arrays_of_either_numpy_load(tmp_path: Path) -> None:
    torch.save(dict(a=np.arange(3)), tmp_path / 'x.pth')
    ours = load(tmp_path / 'x.pth')['a']
    blob = (tmp_path / 'x.pth').read_bytes()
    core = b'numpy._core' if b'numpy._core' in blob else b'numpy.core'
    other = b'numpy.core' if core == b'numpy._core' else b'numpy._core'
    # the name of the other version, in a plain pickle that torch also reads
    raw = pickle.dumps(dict(a=np.arange(3)), protocol=2).replace(core, other)
    archive = tmp_path / 'y.pth'
    with torch.serialization._open_zipfile_writer(str(archive)) as file:
        file.write_record('data.pkl', raw, len(raw))
    assert np.array_equal(load(archive)['a'], ours)


@pytest.mark.parametrize('legacy', [True, False])
def test_an_exploit_is_blocked(tmp_path: Path, legacy: bool,
                               monkeypatch: pytest.MonkeyPatch,
                               caplog: pytest.LogCaptureFixture) -> None:
    path, target = tmp_path / 'x.pth', tmp_path / 'made'
    torch.save(
        dict(state_dict=STATE, bad=Exploit(target)),
        path,
        _use_new_zipfile_serialization=not legacy)
    with pytest.raises(checkpoint.UntrustedPickleError) as info:
        load(path)
    assert not target.exists()
    message = str(info.value)
    assert str(path) in message and 'VIM_MM_TRUST_PICKLE=1' in message
    assert 'mkdir' in message and '\n' not in message

    # any other value is no opt-in
    monkeypatch.setenv('VIM_MM_TRUST_PICKLE', 'no')
    with pytest.raises(checkpoint.UntrustedPickleError):
        load(path)
    assert not target.exists()

    monkeypatch.setenv('VIM_MM_TRUST_PICKLE', '1')
    logger = MMLogger.get_instance('trust')
    logger.addHandler(caplog.handler)
    assert_same(load(path)['state_dict'], STATE)
    assert target.exists()
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert any('UNSAFELY' in r.getMessage() for r in warnings)


def test_the_door_getattr_stays_shut(tmp_path: Path) -> None:
    class Door:

        def __init__(self, *args: Any) -> None:
            self.args = args

        def __reduce__(self) -> tuple:
            return getattr, self.args

    for args in ((HistoryBuffer, '__init__'), (dict, 'fromkeys'),
                 (OneCycleParamScheduler, 'build_iter_from_epoch'),
                 (OneCycleParamScheduler, '__init__')):
        torch.save(Door(*args), tmp_path / 'x.pth')
        with pytest.raises(checkpoint.UntrustedPickleError, match='getattr'):
            load(tmp_path / 'x.pth')
    torch.save(Door(HistoryBuffer, 'mean'), tmp_path / 'x.pth')
    assert load(tmp_path / 'x.pth') is HistoryBuffer.mean


def test_readers_of_other_schemes_are_safe_too(tmp_path: Path) -> None:
    from mmengine.runner import checkpoint as mmengine_checkpoint
    if not hasattr(mmengine_checkpoint, '_safe_torch_load'):
        pytest.skip('this mmengine has no _safe_torch_load')
    target = tmp_path / 'made'
    buffer = io.BytesIO()
    torch.save(Exploit(target), buffer)
    buffer.seek(0)
    with pytest.raises(checkpoint.UntrustedPickleError):
        mmengine_checkpoint._safe_torch_load(buffer)
    with pytest.raises(checkpoint.UntrustedPickleError):
        mmengine_checkpoint._safe_torch_load(buffer, weights_only=False)
    assert not target.exists()


def test_urls_download_once_and_load_safely(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def download(url: str, path: str, progress: bool) -> None:
        calls.append(url)
        if path.endswith('.safetensors'):
            save_file(STATE, path)
        else:
            torch.save(Exploit(tmp_path / 'made'), path)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    for _ in range(2):
        loaded = load('https://host/a/x.safetensors?download=1')
        assert_same(loaded['state_dict'], STATE)
    assert len(calls) == 1
    with pytest.raises(checkpoint.UntrustedPickleError):
        load('https://host/x.pth')
    assert not (tmp_path / 'made').exists()


@pytest.fixture
def server() -> Iterator[str]:
    """An address that answers 404, or ends in the middle of an answer."""

    class Answers(BaseHTTPRequestHandler):

        def do_GET(self) -> None:
            if 'cut' in self.path:
                self.connection.close()
            else:
                self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    made = ThreadingHTTPServer(('127.0.0.1', 0), Answers)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{made.server_port}'
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize('address, words', [
    ('{}/gone.pth', 'the server says 404, Not Found'),
    ('{}/gone.safetensors', 'the server says 404'),
    ('{}/cut.pth', '(closed connection|Bad file|reset)'),
    ('http://127.0.0.1:1/x.pth', 'refused'),
    ('http://vim-mm.invalid/x.pth', '(not known|resolution|No address)')])
def test_addresses_that_cannot_be_read(address: str, words: str, server: str,
                                       tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch
                                       ) -> None:
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    url = address.format(server)
    with pytest.raises(DownloadError, match=re.escape(url) +
                       rf'. cannot be fetched \(.*{words}.*\): .* name the '
                       'file in its place') as caught:
        load(url)
    assert is_user_error(caught.value)
    assert not list(tmp_path.rglob('*.pth')) + list(tmp_path.rglob('*.safe*'))


@pytest.mark.parametrize('name', ['torchvision://resnet18',
                                  'open-mmlab://detectron2/resnet50_caffe'])
def test_names_of_addresses_are_told(name: str, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise URLError(OSError(-2, 'Name or service not known'))

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with pytest.raises(DownloadError, match='https://.*resnet.* cannot be '
                       r'fetched \(Name or service not known\)'):
        load(name)


def test_the_runner_resumes_from_its_own_checkpoint(tmp_path: Path) -> None:
    whole = toy_runner(tmp_path / 'whole', 4, 'whole')
    whole.train()
    toy_runner(tmp_path / 'parts', 2, 'first').train()
    second = toy_runner(tmp_path / 'parts', 4, 'second', resume=True)
    second.train()
    assert second.iter == 4
    saved = [
        torch.load(tmp_path / d / 'iter_4.pth', weights_only=False)
        for d in ('whole', 'parts')
    ]
    # weights, averaged weights and optimizer go on as if never interrupted
    assert_same(saved[0]['state_dict'], saved[1]['state_dict'])
    assert_same(saved[0]['ema_state_dict'], saved[1]['ema_state_dict'])
    for index, state in saved[0]['optimizer']['state'].items():
        assert_same(state, saved[1]['optimizer']['state'][index])
    # and so does the record of the losses
    logs = [s['message_hub']['log_scalars']['train/loss'] for s in saved]
    assert np.array_equal(logs[0].data[0], logs[1].data[0])


def test_the_runner_refuses_an_exploit(tmp_path: Path) -> None:
    target = tmp_path / 'made'
    torch.save(Exploit(target), tmp_path / 'x.pth')
    runner = toy_runner(
        tmp_path, 1, 'refuse', load_from=str(tmp_path / 'x.pth'))
    with pytest.raises(checkpoint.UntrustedPickleError):
        runner.train()
    assert not target.exists()


def test_preparing_twice_changes_nothing() -> None:
    before = list(CheckpointLoader._schemes.items())
    prepare_stack()
    assert list(CheckpointLoader._schemes.items()) == before

"""Files from the Hub's Xet storage: by a stand-in for the package hf_xet, as there is no such storage here; refusals by
the package itself."""

import hashlib
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from huggingface_hub import constants

from engine.weights import hub_xet
from engine.weights.base_model import find_base_model
from tests.engine.weights import test_hub_download as plain
from tests.engine.weights.test_hub_download import EXPERT, job_of
from tests.helpers.waiting import PATIENCE

PIECE = 4000  # bytes
repository, hub = plain.repository, plain.hub  # fixtures


class Storage(ModuleType):
    """hf_xet as far as it is used: every large file of a folder by its hash, in pieces. `trouble` is called with the
    hash and the position before each piece."""

    def __init__(self, folder: Path, trouble=lambda file_hash, at: None) -> None:
        super().__init__("hf_xet")
        self.contents = {
            hashlib.sha256(data).hexdigest(): data for data in (f.read_bytes() for f in folder.rglob("*.safetensors"))
        }
        self.trouble, self.begins, self.groups = trouble, [], []
        self.aborted = threading.Event()
        self.XetFileInfo = lambda file_hash, size: SimpleNamespace(hash=file_hash, size=size)

    def XetSession(self):
        return SimpleNamespace(new_download_stream_group=self._group, sigint_abort=self.aborted.set)

    def _group(self, **given):
        self.groups.append(given)
        return SimpleNamespace(download_stream=self._stream)

    def _stream(self, info, start: int):
        data = self.contents[info.hash]
        assert info.size == len(data)
        self.begins.append(start)
        for at in range(start, len(data), PIECE):
            self.trouble(info.hash, at)
            if self.aborted.is_set():
                return
            yield data[at : at + PIECE]


@pytest.fixture
def storage(hub, repository, monkeypatch) -> Storage:
    hub.xet = True
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    made = Storage(repository)
    monkeypatch.setitem(sys.modules, "hf_xet", made)
    monkeypatch.setattr(hub_xet, "find_spec", lambda name: object())
    return made


def fetch(hub, tmp_path, said=None, progress=lambda done, total, text: None) -> Path:
    return find_base_model(
        job_of(),
        tmp_path,
        progress=progress,
        say=lambda text: said.append(text) if said is not None else None,
        endpoint=hub.endpoint,
        cache=tmp_path / "hub",
    ).source.folder


def whole(folder: Path, repository: Path) -> bool:
    return (folder / EXPERT).read_bytes() == (repository / EXPERT).read_bytes()


def digest(repository: Path) -> str:
    return hashlib.sha256((repository / EXPERT).read_bytes()).hexdigest()


def test_large_files_come_from_there_and_the_token_goes_to_the_hub_alone(
    hub, repository, storage, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said: list[str] = []
    shown: list[tuple[int, int]] = []
    folder = fetch(hub, tmp_path, said, lambda done, total, text: shown.append((done, total)))
    assert whole(folder, repository) and hub.large == [] and said == []
    assert shown[-1][0] == shown[-1][1] > 0
    for group in storage.groups:
        assert group["token_refresh_url"].startswith(hub.endpoint)
        assert "hf_secret" in str(group["token_refresh_headers"]) and "hf_secret" not in str(group["custom_headers"])


def test_where_it_is_forbidden_or_not_there_plain_http_does(hub, repository, storage, tmp_path, monkeypatch):
    for i, change in enumerate([(constants, "HF_HUB_DISABLE_XET", True), (hub_xet, "find_spec", lambda name: None)]):
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            said: list[str] = []
            assert whole(fetch(hub, tmp_path / str(i), said), repository) and said == [] and storage.begins == []


def test_a_failure_goes_on_by_plain_http_with_what_has_come_and_says_so(hub, repository, storage, tmp_path):
    def trouble(file_hash: str, at: int) -> None:
        if file_hash == digest(repository) and at >= 2 * PIECE:
            raise RuntimeError("the storage is on fire")

    storage.trouble = trouble
    said: list[str] = []
    folder = fetch(hub, tmp_path, said)
    assert whole(folder, repository) and hub.gets(EXPERT) == [f"bytes={2 * PIECE}-"]
    assert len(said) == 1 and EXPERT in said[0] and "on fire" in said[0] and "plain HTTP" in said[0]


def test_an_answer_that_ends_early_is_a_failure(hub, repository, storage, tmp_path):
    stream = storage._stream

    def short(info, start: int):
        for n, piece in enumerate(stream(info, start)):
            if n == 2 and info.hash == digest(repository):
                return
            yield piece

    storage._stream = short
    said: list[str] = []
    assert whole(fetch(hub, tmp_path, said), repository)
    assert hub.gets(EXPERT) == [f"bytes={2 * PIECE}-"] and f"ended after {2 * PIECE} of" in said[0]


def test_what_arrives_damaged_from_there_comes_again_by_plain_http(hub, repository, storage, tmp_path):
    right = storage.contents[digest(repository)]
    storage.contents[digest(repository)] = right[:-1] + bytes([right[-1] ^ 1])
    said: list[str] = []
    assert whole(fetch(hub, tmp_path, said), repository)
    assert hub.gets(EXPERT) == [""] and "arrives damaged" in said[0]


def test_a_stop_ends_it_and_the_next_start_goes_on_where_it_was(hub, repository, storage, tmp_path):
    class Stop(Exception):
        pass

    reached = threading.Event()

    def hang(file_hash: str, at: int) -> None:
        if file_hash == digest(repository) and at == 3 * PIECE:
            reached.set()
            assert storage.aborted.wait(PATIENCE)

    def stop(done: int, total: int, text: str) -> None:
        if text.startswith("downloading,") and reached.is_set():
            raise Stop

    storage.trouble = hang
    with pytest.raises(Stop):
        fetch(hub, tmp_path, progress=stop)
    (partial,) = (tmp_path / "hub").rglob(f"{digest(repository)}.incomplete")
    assert partial.stat().st_size == 3 * PIECE
    storage.trouble = lambda file_hash, at: None
    storage.aborted.clear()
    storage.begins.clear()
    assert whole(fetch(hub, tmp_path), repository) and 3 * PIECE in storage.begins and hub.gets(EXPERT) == []


def test_when_nothing_comes_any_more_it_is_given_up(hub, repository, storage, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_xet, "STALLED", 0.2)

    def hang(file_hash: str, at: int) -> None:
        if file_hash == digest(repository) and at == PIECE:
            assert storage.aborted.wait(PATIENCE)

    storage.trouble = hang
    said: list[str] = []
    assert whole(fetch(hub, tmp_path, said), repository)
    assert len(said) == 1 and "nothing came for" in said[0]


def test_the_package_itself_refused_a_token_falls_back(hub, repository, tmp_path, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet = True
    said: list[str] = []
    assert whole(fetch(hub, tmp_path, said), repository) and len(said) == 1 and "plain HTTP" in said[0]
    assert any("/xet-read-token/" in path for _, path, _, _ in hub.asked)

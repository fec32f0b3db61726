"""Files of weights: whole, sound and harmless, or refused with the reason; downloads too."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from piip.weights.differences import check_values
from piip.weights.files.download import local_path
from piip.weights.files.tensors import read_file, read_state, write_file

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "meta": {"epoch": 12, "CLASSES": ("person", "car")}},
        {"model": STATE, "optimizer": {}},
        {"module": STATE, "global_steps": 3},
        {"module": {f"module.{key}": value for key, value in STATE.items()}},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
    ],
    ids=["plain", "state_dict", "model", "module", "module.module.", "state_dict.module."],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_containers(content: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    state = read_state(tmp_path / "x.pth")
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) and state[key].dtype == STATE[key].dtype for key in STATE)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_written_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text("what was there before")
    write_file(STATE, path)
    state = read_state(path)
    assert all(torch.equal(state[key], STATE[key]) and state[key].dtype == STATE[key].dtype for key in STATE)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_leaves_all_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("what was there before")
    with pytest.raises(AttributeError):
        write_file({"a": "no tensor"}, path)
    assert path.read_text() == "what was there before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from the file ran",)


def write_bad(path: Path, how: str) -> None:
    torch.save(STATE, path)
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>404</html>")
    elif how == "code":
        torch.save({"state_dict": STATE, "x": Evil()}, path)
    elif how == "legacy code":
        torch.save({"state_dict": STATE, "x": Evil()}, path, _use_new_zipfile_serialization=False)
    elif how == "many entries":
        with zipfile.ZipFile(path, "w") as archive:
            for number in range(100_001):
                archive.writestr(str(number), b"")
    elif how == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/0", bytes(10**7))
    elif how == "expanded":
        torch.save({"huge": torch.zeros(1).expand(10**6, 10**6)}, path)
    elif how == "no tensors":
        torch.save([1, 2], path)
    elif how == "number":
        torch.save({**STATE, "epoch": 3}, path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut off", "is cut off or damaged"),
        ("empty", r"x\.pth"),
        ("text", r"x\.pth"),
        ("code", "more than tensors and plain containers, which could run code"),
        ("legacy code", "more than tensors and plain containers, which could run code"),
        ("many entries", "hold 100001 entries .* expected at most 100000 entries"),
        ("bomb", "hold 1 entries of 10000000 bytes in all, expected at most"),
        ("expanded", r"tensor huge claims shape \(1000000, 1000000\) but holds only 4 bytes"),
        ("no tensors", "holds no state dict: expected tensors by name, got list"),
        ("number", "entry 'epoch' is a int, expected tensors by name only"),
    ],
)
def test_bad_files(how: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bad(tmp_path / "x.pth", how)
    with pytest.raises(ValueError, match=message) as error:
        read_state(tmp_path / "x.pth")
    assert str(tmp_path / "x.pth") in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


def test_bad_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cannot be read: it is cut off or damaged"):
        read_file(path)


def test_npz_with_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"cannot be read: .* allow_pickle=False"):
        read_state(tmp_path / "x.npz")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values(value: float) -> None:
    with pytest.raises(ValueError, match=r"x\.pth: b holds NaN or infinite values"):
        check_values({**STATE, "b": torch.tensor([1, value])}, "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth: b is of torch\.int64, expected a floating-point type"):
        check_values({**STATE, "b": torch.tensor([1])}, "x.pth")
    check_values(STATE, "x.pth")


class Short(BaseHTTPRequestHandler):
    """Announces more than it sends, as a broken connection does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 100)

    def log_message(self, *_: Any) -> None: ...


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


def serve(handler: Any) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "site").mkdir()
    torch.save(STATE, tmp_path / "site" / "model.pth")
    content = (tmp_path / "site" / "model.pth").read_bytes()
    (tmp_path / "site" / f"model-{sha256(content).hexdigest()[:8]}.pth").write_bytes(content)
    (tmp_path / "site" / "model-00000000.pth").write_bytes(content)
    yield from serve(partial(Quiet, directory=str(tmp_path / "site")))


def files(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_download(site: str, cache: Path, tmp_path: Path) -> None:
    path = local_path(f"{site}/model.pth")
    assert cache in path.parents
    assert read_state(path).keys() == STATE.keys()
    (tmp_path / "site" / "model.pth").unlink()
    assert local_path(f"{site}/model.pth") == path  # from the cache


def test_download_with_a_hash_in_its_name(site: str, cache: Path, tmp_path: Path) -> None:
    (hashed,) = (tmp_path / "site").glob("model-[!0]*.pth")
    assert local_path(f"{site}/{hashed.name}").name == hashed.name
    with pytest.raises(ValueError, match="its name promises 00000000: delete it"):
        local_path(f"{site}/model-00000000.pth")


def test_download_too_small(site: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"model.pth has \d+ bytes, expected at least 1000000"):
        local_path(f"{site}/model.pth", min_size=10**6)


def test_download_that_ends_early(cache: Path) -> None:
    for url in serve(Short):
        with pytest.raises(ConnectionError, match=r"cannot download http.*100 out of 1000 bytes"):
            local_path(f"{url}/model.pth")
    assert files(cache) == []


def test_download_of_nothing(site: str, cache: Path) -> None:
    with pytest.raises(ConnectionError, match=r"cannot download http.*/none\.pth .*404"):
        local_path(f"{site}/none.pth")
    assert files(cache) == []

"""Files that are no weights, or hostile ones: each ends in one line, and takes no memory to speak of."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import resource
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from piip.branches import Pretrained, ViTBranch
from piip.weights.files.tensors import read_file, read_state
from piip.weights.pretrained import load_pretrained

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
TIB = 2**40
LIMIT = 300 * 2**20  # bytes that all files together may add to the process; the smallest bomb takes 2 GB


def saved(content: Any, *, zipped: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], start: int = 0, end: int = 8, dtype: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def npy(shape: str, descr: str = "'<f4'", data: bytes = bytes(16)) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def archive(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        info = tarfile.TarInfo("model.pth")
        info.size = 4
        file.addfile(info, io.BytesIO(b"data"))
    return stream.getvalue()


def with_claim(data: bytes, claim: int) -> bytes:
    """A pickle of PyTorch whose tensor claims another number of elements."""
    protocol = pickle.dumps(claim, 2)[2:-1]
    pattern = b"cpuq" if b"cpuq" in data else b"cpu"
    place = data.index(b"K\x06", data.index(pattern))
    return data[:place] + protocol + data[place + 2 :]


def lying_zip(claim: int) -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved({"a": torch.arange(6.0)}))) as source:
        entries = {name: source.read(name) for name in source.namelist()}
    return archive(**{k: with_claim(v, claim) if k.endswith("data.pkl") else v for k, v in entries.items()})


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code from the file ran",)


def nested(depth: int) -> Any:
    content: Any = STATE
    for _ in range(depth):
        content = {"model": content}
    return content


def circular() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


FILES: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x80",
    "text": b"not weights",
    "utf-16 text": "weights".encode("utf-16"),
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "html after blanks": b"\n\n  <html>",
    "json": json.dumps({"weights": [1, 2]}).encode(),
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "npy": npy("(4,)"),
    "tar": tar(),
    "gzip": b"\x1f\x8b\x08\x00" + bytes(20),
    "bzip2": b"BZh91AY" + bytes(20),
    "xz": b"\xfd7zXZ\x00" + bytes(20),
    "zstd": b"\x28\xb5\x2f\xfd" + bytes(20),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(20),
    "gguf": b"GGUF" + bytes(20),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(20),
    "elf": b"\x7fELF" + bytes(20),
    "zeros": bytes(4096),
    "ones": b"\xff" * 4096,
    "plain pickle": pickle.dumps(STATE["b"].tolist()),
    "plain pickle of code": pickle.dumps(Evil()),
    "pickle protocol 0": pickle.dumps({"a": 1}, 0),
    "pickle of a numpy array": pickle.dumps({"a": np.zeros(3)}),
    "code": saved({"model": STATE, "x": Evil()}),
    "legacy code": saved({"model": STATE, "x": Evil()}, zipped=False),
    "module": saved({"model": torch.nn.Linear(2, 2)}),
    "numpy in a container": saved({"model": {"a": np.zeros(3)}}),
    "bare tensor": saved(torch.zeros(3)),
    "list": saved([torch.zeros(3)]),
    "number": saved(3),
    "none": saved(None),
    "string": saved("weights"),
    "empty dict": saved({}),
    "empty container": saved({"model": {}}),
    "text values": saved({"model": {"a": "str"}}),
    "list values": saved({"model": {"a": [torch.zeros(1)]}}),
    "none values": saved({"a.weight": None}),
    "dict values": saved({"a": {"b": torch.zeros(1)}}),
    "number beside": saved({**STATE, "epoch": 3}),
    "integer keys": saved({1: torch.zeros(1)}),
    "tuple keys": saved({("a", 1): torch.zeros(1)}),
    "bytes keys": saved({b"a": torch.zeros(1)}),
    "none keys": saved({"model": {None: torch.zeros(1)}}),
    "key of two lines": saved({"a\nb": torch.zeros(1)}),
    "key of control characters": saved({"a\x1b[31m": torch.zeros(1)}),
    "too deep": saved(nested(30)),
    "circular": saved(circular()),
    "twice": saved({"module.a": torch.zeros(1), "a": torch.zeros(1)}),
    "stride 0": saved({"model": {"a": torch.zeros(1).expand(TIB)}}),
    "stride 0 of 2 GB": saved({"model": {"a": torch.zeros(1).expand(2**29)}}),
    "stride 0 in rows": saved({"a": torch.zeros(4).expand(2**27, 4)}),
    "stride 0, legacy": saved({"a": torch.zeros(1).expand(2**29)}, zipped=False),
    "overlapping": saved({"a": torch.zeros(64).as_strided((32, 32), (1, 1))}),
    "sparse": saved({"a": torch.eye(3).to_sparse()}),
    "sparse claim": saved({"a": torch.sparse_coo_tensor([[0]], [1.0], (TIB,))}),
    "meta": saved({"a": torch.zeros(3, device="meta")}),
    "meta claim": saved({"a": torch.zeros(TIB, device="meta")}),
    "claims 1 TiB": lying_zip(TIB // 4),
    "claims 2 GB": lying_zip(2**29),
    "legacy claims 1 TiB": with_claim(saved({"a": torch.arange(6.0)}, zipped=False), TIB // 4),
    "legacy claims 2 GB": with_claim(saved({"a": torch.arange(6.0)}, zipped=False), 2**29),
    "zip of nothing": archive(),
    "zip of text": archive(**{"README.txt": b"hello"}),
    "zip with no pickle": archive(**{"archive/data/0": bytes(8)}),
    "zip with an empty pickle": archive(**{"archive/data.pkl": b"", "archive/version": b"3\n"}),
    "zip with junk for a pickle": archive(**{"archive/data.pkl": b"junk", "archive/version": b"3\n"}),
    "torchscript": archive(**{"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b"\x80\x02)."}),
    "npz 1 TiB": archive(**{"a.npy": npy("(274877906944,)")}),
    "npz 2 GB": archive(**{"a.npy": npy("(536870912,)")}),
    "npz negative": archive(**{"a.npy": npy("(-4,)")}),
    "npz cut": archive(**{"a.npy": npy("(400,)")}),
    "npz objects": archive(**{"a.npy": npy("(1,)", "'|O'", pickle.dumps([{}]))}),
    "npz text": archive(**{"a.npy": npy("(1,)", "'<U4'")}),
    "npz big-endian": archive(**{"a.npy": npy("(4,)", "'>f4'")}),
    "npz of a structure": archive(**{"a.npy": npy("(2,)", "[('x', '<f4'), ('y', '<f4')]")}),
    "npz bad header": archive(**{"a.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': junk   "}),
    "npz code in its header": archive(**{"a.npy": npy("__import__('os').getpid()")}),
    "npz no magic": archive(**{"a.npy": b"junk"}),
    "safetensors header 1 TiB": safetensors(b"{}", length=TIB),
    "safetensors header of 2^63": safetensors(b"{}", length=2**63),
    "safetensors header cut": safetensors(entry([2]), bytes(8))[:20],
    "safetensors data cut": safetensors(entry([2]), bytes(7)),
    "safetensors data 1 TiB": safetensors(entry([TIB // 4], 0, TIB), bytes(8)),
    "safetensors shape 1 TiB": safetensors(entry([TIB // 4]), bytes(8)),
    "safetensors shape that wraps": safetensors(entry([2**32, 2**32]), bytes(8)),
    "safetensors offsets reversed": safetensors(entry([2], 8, 0), bytes(8)),
    "safetensors negative": safetensors(entry([-2]), bytes(8)),
    "safetensors dtype": safetensors(entry([2], dtype="X9"), bytes(8)),
    "safetensors null": safetensors(entry([None]), bytes(8)),
    "safetensors no json": safetensors(b"{not json", bytes(8)),
    "safetensors list": safetensors(b'{"a": [1]}', bytes(8)),
    "safetensors gap": safetensors({**entry([2]), "b": entry([2], 12, 20)["a"]}, bytes(20)),
    "safetensors overlap": safetensors({**entry([2]), "b": entry([2], 4, 12)["a"]}, bytes(12)),
    "safetensors empty": safetensors({}),
}  # fmt: skip
WHOLE = {
    "zip": saved({"model": STATE}),
    "legacy": saved({"model": STATE}, zipped=False),
    "safetensors": save(STATE),
    "npz": archive(**{"a.npy": npy("(4,)")}),
}
CUTS = {
    f"{kind} cut at {part}%": data[: len(data) * part // 100]
    for kind, data in WHOLE.items()
    for part in range(1, 100, 9)
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(read: Callable[[], Any]) -> str:
    """The one line that reading ends in."""
    before = peak()
    with pytest.raises((ValueError, OSError)) as caught:
        read()
    assert peak() - before < LIMIT
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 600, line
    return line


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ""])
@pytest.mark.parametrize("name", [*FILES, *CUTS])
def test_ends_in_one_line(name: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the suffix says."""
    path = tmp_path / f"weights{suffix}"
    path.write_bytes({**FILES, **CUTS}[name])
    assert str(path) in refused(lambda: read_state(path))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", WHOLE)
def test_changed_bytes(kind: str, tmp_path: Path) -> None:
    """One byte changed, at any place: read as tensors, or refused in one line."""
    data, path = WHOLE[kind], tmp_path / "weights.pth"
    for place in range(0, len(data), max(len(data) // 150, 1)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
        try:
            state = read_state(path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def test_no_opcode_of_a_pickle_is_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for opcode in pickletools.opcodes:
        for argument in (b"", b"\xff" * 8, bytes(8), b"os\nsystem\n"):
            path.write_bytes(b"\x80\x02" + opcode.code.encode("latin1") + argument + b".")
            refused(lambda: read_state(path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz", ".bin", ""])
@pytest.mark.parametrize("kind", WHOLE)
def test_the_content_decides_not_the_suffix(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(WHOLE[kind])
    assert set(read_state(path)) == ({"a"} if kind == "npz" else set(STATE))


def test_no_files(tmp_path: Path) -> None:
    assert "is a folder" in refused(lambda: read_file(tmp_path))
    assert "does not exist" in refused(lambda: read_file(tmp_path / "nothing.pth"))
    assert "no regular file" in refused(lambda: read_file("/dev/null"))


@pytest.mark.parametrize("name", FILES)
def test_as_pretrained_weights(name: str, tmp_path: Path) -> None:
    """And with a branch behind them, which stays as it is."""
    path = tmp_path / "weights.pth"
    path.write_bytes(FILES[name])
    branch = ViTBranch(
        embed_dim=16, depth=1, num_heads=2, pretrained=Pretrained(source=str(path), family="deit")
    )
    before = {key: value.clone() for key, value in branch.state_dict().items()}
    refused(lambda: load_pretrained(branch))
    assert all(torch.equal(value, before[key]) for key, value in branch.state_dict().items())

"""Whom the page answers, and how much it takes in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="needs Gradio (make setup installs it)")

from piip.serve import gate
from piip.serve.gate import Gate


async def _page(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"welcome"})


def responses(requests: list[Any], app: Any = _page, any_address: bool = False) -> list[Any]:
    hosts = {"127.0.0.1", "::1", "localhost", "lab.example"}
    guarded = Gate(app, hosts, any_address, most_bytes=2_000_000)

    async def ask() -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guarded)) as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(ask())


def get(path: str = "/", method: str = "GET", **headers: str) -> Any:
    own = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Request(method, f"http://localhost:7860{path}", headers=own)


ROUTES = [
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/assets/index.js"),
    ("GET", "/gradio_api/file=/tmp/x.png"),
    ("GET", "/gradio_api/queue/data"),
    ("GET", "/gradio_api/heartbeat/x"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/upload"),
    ("OPTIONS", "/gradio_api/upload"),
]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example:7860"},
        {"host": "192.0.2.1:7860"},
        {"host": ""},
        {"host": "[::1"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:8000"},
        {"origin": "http://localhost:7860.evil.example"},
        {"origin": "http://["},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    ],
)
def test_foreign_requests_are_refused_at_every_route(headers: dict[str, str]) -> None:
    answers = responses([get(path, method, **headers) for method, path in ROUTES])
    assert {answer.status_code for answer in answers} == {403}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "127.0.0.1:8080", "origin": "http://127.0.0.1:8080"},  # a tunnel's port
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "LAB.example", "origin": "https://lab.example"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"},  # a link to the page
        {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors"},
    ],
)
def test_own_requests_are_answered(headers: dict[str, str]) -> None:
    (answer,) = responses([get(**headers)])
    assert (answer.status_code, answer.text) == (200, "welcome")
    assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_a_page_for_other_computers_answers_to_addresses() -> None:
    hosts = ["192.0.2.1:7860", "[2001:db8::1]:7860", "evil.example"]
    answers = responses([get(host=host) for host in hosts], any_address=True)
    assert [answer.status_code for answer in answers] == [200, 200, 403]


def test_nothing_is_fetched_for_a_visitor() -> None:
    paths = ["/gradio_api/file=http://192.0.2.1/x", "/gradio_api/proxy=x", "/gradio_api/process_recording"]
    assert {answer.status_code for answer in responses([get(path) for path in paths])} == {403}


def post(path: str, size: int) -> Any:
    return httpx.Request("POST", f"http://localhost{path}", content=b"x" * size)


def test_bytes_and_uploads_per_minute_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks() -> Any:
        yield b"x"

    answers = responses(
        [
            post("/gradio_api/upload", 2_000_000),
            post("/gradio_api/upload", 2_200_000),
            post("/gradio_api/queue/join", 2_000_000),
            httpx.Request("POST", "http://localhost/gradio_api/upload", content=chunks()),
        ]
    )
    assert [answer.status_code for answer in answers] == [200, 413, 413, 411]
    assert answers[1].text == "The request has 2.2 MB. The limit is 2.1 MB: please send less."
    now = [0.0]
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        now[0] += 1
        await _page(scope, receive, send)

    answers = responses([post("/gradio_api/upload", 1)] * 31, slowly)
    assert [answer.status_code for answer in answers] == [200] * 30 + [429]


def test_an_error_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("two\nlines")

    (answer,) = responses([get("/x")], broken)
    assert answer.status_code == 500 and answer.text == "The server failed. Its log says why."
    (record,) = caplog.records
    assert record.getMessage() == r"a request for '/x' failed: KeyError: 'two\nlines'"

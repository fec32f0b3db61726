"""The page of an untrained model behind a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piip.engine.checkpoints.checkpoint import Checkpointer
from piip.engine.config import load_config
from piip.engine.model import build_model
from piip.serve.analysis import Model
from piip.serve.page import Page, build_page, drawn_examples
from piip.serve.server import Server
from piip.serve.upload import Limits

from ..tiny_config import QUICK_CONFIG


def untrained(config: Path, folder: Path) -> Model:
    Checkpointer(build_model(load_config(str(config))), str(folder)).save("model")
    return Model(str(config), str(folder / "model.pth"))


@contextmanager
def served(folder: Path, limits: Limits) -> Iterator[tuple[str, Page, Model]]:
    """Address, page and model, served while the context lasts."""
    model = untrained(QUICK_CONFIG, folder)
    page = build_page([model], limits, drawn_examples([model], folder))
    server = Server(page, limits, port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.address, page, model
    finally:
        server.should_exit = True
        thread.join()

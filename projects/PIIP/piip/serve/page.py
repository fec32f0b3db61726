"""The page: what is on it, and what its buttons do."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..engine.command_line import is_for_users
from ..images import FORMATS
from ..quick.drawing import CLASSES
from ..quick.shapes import write_split
from .analysis import LOWEST_SCORE, Analysis, Model
from .drawing import LAYERS
from .gate import error_line
from .privacy import no_telemetry
from .responses import enlarge
from .sessions import KEPT_SECONDS, Sessions
from .upload import Limits, UploadError, read_upload

no_telemetry()

import gradio as gr  # noqa: E402, once telemetry is off
from gradio.utils import get_upload_folder  # noqa: E402
from gradio_client.utils import is_file_obj_with_meta, traverse  # noqa: E402

from .server import Server  # noqa: E402

__all__ = ["Page", "build_page", "drawn_examples", "serve"]

_logger = logging.getLogger("detectron2.piip")

_NAMED_CLASSES = 20  # in the introduction; the filter lists all
_RESPONSE_SIDE = 320  # pixels of the pictures of maps
_INTRODUCTION = f"""\
Upload or paste an image ({", ".join(FORMATS)}) and press **Analyse**. You can change score threshold, classes
and drawing afterwards; the model does not run again. Images stay on the computer that serves this page. They
are deleted after {KEPT_SECONDS // 60} minutes.
"""
_RESPONSES = """\
### What the branches respond to

The features of each map, projected on the three directions in which they vary most: red, green and blue.
Cells of one map that share a colour are alike to the network; colours of different maps cannot be compared.
In brackets: the share of the features' variance that the colours show.
"""
_FAILED = "The analysis failed. Try another or a smaller image; the log of the server says what happened."
_DROPPED = "This analysis was dropped to make room for others. Press Analyse again."


class Page(gr.Blocks):
    """Blocks of Gradio whose failures are a sentence for the visitor and one line of the log.

    Args:
        sessions: analyses of the page's visitors.
        settings: of Gradio's Blocks.
    """

    def __init__(self, sessions: Sessions, **settings: Any) -> None:
        super().__init__(**settings)
        self.sessions = sessions

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any) -> list[Any]:
        """What Gradio calls first; it would fetch files from addresses that a request names."""
        traverse(inputs, _refuse_address, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, *rest)

    async def process_api(self, *args: Any, **settings: Any) -> dict[str, Any]:
        """What Gradio calls for every event."""
        try:
            return await super().process_api(*args, **settings)
        except Exception as error:  # Gradio would print a traceback, and tell the visitor nothing
            if isinstance(error, gr.Error):  # of its components
                told = str(error.message)
            elif isinstance(error, ValueError) and is_for_users(error):
                told = str(error)
            else:
                told = _FAILED
            cause = error_line(error) if told == _FAILED else shorten(told, 200)
            _logger.warning(f"a request failed: {cause}")
            raise gr.Error(told, print_exception=False) from error


def _refuse_address(file: dict[str, Any]) -> None:
    if "://" in str(file.get("path")):
        raise UploadError("This page fetches no image from an address. Please upload the file.")


def drawn_examples(models: Sequence[Model], folder: Path) -> list[Path]:
    """Two images of drawn shapes, written to a folder; none where no model knows the shapes."""
    if not any(set(CLASSES) <= set(model.classes) for model in models):
        return []
    write_split(folder, "examples", 2, image_size=256, seed=7)
    return sorted((folder / "examples").iterdir())


def _cost_rows(analysis: Analysis) -> list[list[str]]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [
        [
            row.component,
            row.input_size,
            f"{row.milliseconds:.1f}",
            number(row.gflops, 2),
            number(row.params_m, 2),
        ]
        for row in analysis.rows
    ]


def _response_pictures(analysis: Analysis) -> list[tuple[Any, str]]:
    return [
        (enlarge(response.picture, _RESPONSE_SIDE), f"{response.name} ({100 * response.explained:.0f}%)")
        for response in analysis.responses
    ]


def _about(name: str, model: Model) -> str:
    named = ", ".join(model.classes[:_NAMED_CLASSES])
    more = len(model.classes) - _NAMED_CLASSES
    return (
        f"# {name}\n\n**{model.task.capitalize()}**, {len(model.classes)} classes: {named}"
        f"{f' and {more} more' if more > 0 else ''}."
    )


def _headers(model: Model) -> list[str]:
    return (
        ["class", "score", "box (left, top, right, bottom)"]
        if model.finds_instances
        else ["class", "% of the image"]
    )


def _layers(model: Model) -> list[str]:
    if not model.finds_instances:
        return [layer for layer in LAYERS if layer != "boxes"]
    return [layer for layer in LAYERS if layer != "masks" or model.task == "instance segmentation"]


def _handlers(
    by_name: dict[str, Model], limits: Limits, sessions: Sessions
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """What happens when an image is analysed, when it is redrawn, and when a model is chosen."""
    # One thread for all: the C library keeps freed memory for each thread (piip.inference.heap).
    worker = ThreadPoolExecutor(1)

    def analyse(
        image: dict[str, Any] | None,
        name: str,
        threshold: float,
        classes: list[str],
        layers: list[str],
        request: gr.Request,
    ) -> tuple[Any, ...]:
        if image is None or image["path"] is None:
            raise UploadError("There is no image yet: upload or paste one, or take an example.")
        path = Path(image["path"]).resolve()
        if not path.is_relative_to(Path(get_upload_folder()).resolve()):
            raise UploadError("This page reads uploaded files only. Please upload the image.")

        def work() -> tuple[Analysis, Any, Any]:
            made = by_name[name].analyse(read_upload(path, limits))
            return made, *made.draw(threshold, classes, layers)

        analysis, picture, found = worker.submit(work).result()
        sessions.keep(str(request.session_hash), analysis)
        return True, picture, found, _cost_rows(analysis), _response_pictures(analysis)

    def redraw(
        analysed: bool, threshold: float, classes: list[str], layers: list[str], request: gr.Request
    ) -> tuple[Any, Any]:
        if not analysed:
            return None, None
        analysis = sessions.get(str(request.session_hash))
        if analysis is None:
            raise UploadError(_DROPPED)
        known = set(analysis.model.classes)  # another model may have been chosen since
        shown = classes if known.issuperset(classes) else []
        return worker.submit(analysis.draw, threshold, shown, layers).result()

    def choose(name: str) -> tuple[Any, ...]:
        model = by_name[name]
        return (
            _about(name, model),
            gr.Dropdown(choices=model.classes, value=[]),
            gr.Slider(visible=model.finds_instances),
            gr.CheckboxGroup(choices=_layers(model), value=_layers(model)),
            gr.Dataframe(value=[], headers=_headers(model)),
        )

    return analyse, redraw, choose


def build_page(models: Sequence[Model], limits: Limits, examples: Sequence[Path]) -> Page:
    """The page for some models, the first of which is chosen.

    Args:
        models: one or more.
        limits: of uploads.
        examples: images to offer.
    """
    times = Counter(model.name for model in models)
    by_name = {
        f"{model.name} ({number})" if times[model.name] > 1 else model.name: model
        for number, model in enumerate(models, start=1)
    }
    name, first = next(iter(by_name.items()))
    sessions = Sessions()
    analyse, redraw, choose = _handlers(by_name, limits, sessions)
    private = {"api_visibility": "private"}
    with Page(sessions, title=name, analytics_enabled=False, delete_cache=(60, KEPT_SECONDS)) as page:
        about = gr.Markdown(_about(name, first))
        gr.Markdown(_INTRODUCTION)
        analysed = gr.State(False)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="image", buttons=[], height=280
                )
                if examples:
                    gr.Examples([str(path) for path in examples], inputs=image, cache_examples=False)
                task = gr.Dropdown(list(by_name), value=name, label="model", visible=len(models) > 1)
                threshold = gr.Slider(
                    LOWEST_SCORE,
                    1,
                    value=0.5,
                    step=0.01,
                    label="score threshold",
                    visible=first.finds_instances,
                )
                classes = gr.Dropdown(
                    first.classes, multiselect=True, label="filter classes (empty = all)", value=[]
                )
                layers = gr.CheckboxGroup(_layers(first), value=_layers(first), label="draw")
                button = gr.Button("Analyse", variant="primary")
            with gr.Column(scale=3, min_width=320):
                picture = gr.Image(
                    label="detections", show_label=False, buttons=["download", "fullscreen"], format="png"
                )
                found = gr.Dataframe(headers=_headers(first), label="detections", interactive=False)
        with gr.Accordion("Technical details: time, cost, and what the branches respond to", open=False):
            rows = gr.Dataframe(
                headers=["component", "input size (px)", "ms", "GFLOPs", "parameters (M)"],
                label="time and cost by component, measured once on this image; one multiply-add is one FLOP",
                interactive=False,
            )
            gr.Markdown(_RESPONSES)
            gallery = gr.Gallery(
                label="responses",
                show_label=False,
                columns=min(len(first.piip.branches) + 1, 5),
                height="auto",
                object_fit="contain",
                buttons=[],
            )
        choices = [threshold, classes, layers]
        button.click(
            analyse,
            [image, task, *choices],
            [analysed, picture, found, rows, gallery],
            preprocess=False,  # with it, Gradio decodes the image, whatever its size
            **private,
        )
        for choice in (threshold.release, classes.change, layers.change):
            choice(redraw, [analysed, *choices], [picture, found], show_progress="hidden", **private)
        task.change(choose, task, [about, classes, threshold, layers, found], **private)
    return page


def serve(page: Page, limits: Limits, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Offer a page until Ctrl-C or SIGTERM; see :class:`~piip.serve.server.Server`."""
    server = Server(page, limits, host, port)
    print(f"the page is at {server.address} until Ctrl-C", flush=True)
    server.run()

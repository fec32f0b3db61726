"""The page: what is on it, and what its buttons do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..quick.shapes import write_split
from .analysis import LOWEST_SCORE, Analysis, Model
from .drawing import PARTS
from .privacy import SameOriginOnly, no_telemetry
from .responses import enlarge
from .upload import Limits, read_upload

no_telemetry()

import gradio as gr  # noqa: E402, once telemetry is off
from starlette.middleware import Middleware  # noqa: E402

__all__ = ["build_page", "drawn_examples", "serve"]

_KEPT_SECONDS = 600  # an analysis of a visitor who went away
_RESPONSE_SIDE = 320  # pixels of the pictures of maps
_INTRODUCTION = """\
# PIIP: what branches of an image pyramid find

Upload or paste an image, or take an example, and press **Analyse**. Score, classes and drawing can be changed
afterwards without running the model again. Images stay on the computer that serves this page, for ten
minutes.
"""
_RESPONSES = """\
### What the branches respond to

The features of each map, as the three directions in which they vary most: red, green and blue. Cells of one
map that share a colour are alike to the network; the colours of different maps mean different things. In
brackets: how much of the variance of the features the colours show.
"""


def drawn_examples(folder: Path) -> list[Path]:
    """Two images of drawn shapes, written to a folder."""
    write_split(folder, "examples", 2, image_size=256, seed=7)
    return sorted((folder / "examples").iterdir())


def _part_rows(analysis: Analysis) -> list[list[str]]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    return [
        [row.part, row.sees, f"{row.milliseconds:.1f}", number(row.gflops, 2), number(row.params_m, 2)]
        for row in analysis.rows
    ]


def _response_pictures(analysis: Analysis) -> list[tuple[Any, str]]:
    return [
        (enlarge(response.picture, _RESPONSE_SIDE), f"{response.name} ({100 * response.explained:.0f}%)")
        for response in analysis.responses
    ]


def build_page(models: Sequence[Model], limits: Limits, examples: Sequence[Path]) -> gr.Blocks:
    """The page for some models, the first of which is chosen.

    Args:
        models: with different names.
        limits: of uploads.
        examples: images to offer.
    """
    by_name = {model.name: model for model in models}
    first = models[0]

    def analyse(
        path: str | None, name: str, threshold: float, classes: list[str], parts: list[str]
    ) -> tuple[Any, ...]:
        if path is None:
            raise gr.Error(
                "there is no image yet: upload or paste one, or take an example", print_exception=False
            )
        try:
            analysis = by_name[name].analyse(read_upload(Path(path), limits))
        except ValueError as error:  # of the upload, or an image that the model cannot take
            raise gr.Error(str(error), print_exception=False) from error
        picture, found = analysis.draw(threshold, classes, parts)
        return analysis, picture, found, _part_rows(analysis), _response_pictures(analysis)

    def redraw(
        analysis: Analysis | None, threshold: float, classes: list[str], parts: list[str]
    ) -> tuple[Any, Any]:
        if analysis is None:
            return None, None
        if not set(classes) <= set(analysis.model.classes):  # another task was chosen since
            classes = []
        return analysis.draw(threshold, classes, parts)

    def choose(name: str) -> tuple[Any, Any, Any, Any]:
        model = by_name[name]
        headers = ["class", "score", "box"] if model.finds_instances else ["class", "% of the image"]
        return (
            gr.Dropdown(choices=model.classes, value=[]),
            gr.Slider(visible=model.finds_instances),
            gr.CheckboxGroup(choices=_parts(model), value=_parts(model)),
            gr.Dataframe(value=[], headers=headers),
        )

    with gr.Blocks(title="PIIP", analytics_enabled=False, delete_cache=(60, _KEPT_SECONDS)) as page:
        gr.Markdown(_INTRODUCTION)
        state = gr.State(time_to_live=_KEPT_SECONDS)
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="image", buttons=[], height=280
                )
                if examples:
                    gr.Examples([str(path) for path in examples], inputs=image, cache_examples=False)
                task = gr.Dropdown(list(by_name), value=first.name, label="task and model")
                threshold = gr.Slider(
                    LOWEST_SCORE, 1, value=0.5, step=0.01, label="lowest score", visible=first.finds_instances
                )
                classes = gr.Dropdown(first.classes, multiselect=True, label="classes (none: all)", value=[])
                parts = gr.CheckboxGroup(_parts(first), value=_parts(first), label="draw")
                button = gr.Button("Analyse", variant="primary")
            with gr.Column(scale=3, min_width=320):
                picture = gr.Image(
                    label="found", show_label=False, buttons=["download", "fullscreen"], format="png"
                )
                found = gr.Dataframe(headers=["class", "score", "box"], label="found", interactive=False)
        rows = gr.Dataframe(
            headers=["part", "sees (px)", "ms", "GFLOPs", "parameters (M)"],
            label="time and cost by part, measured once on this image; one multiply-add is one FLOP",
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
        choices = [threshold, classes, parts]
        button.click(
            analyse, [image, task, *choices], [state, picture, found, rows, gallery], api_visibility="private"
        )
        for choice in (threshold.release, classes.change, parts.change):
            choice(
                redraw, [state, *choices], [picture, found], show_progress="hidden", api_visibility="private"
            )
        task.change(choose, task, [classes, threshold, parts, found], api_visibility="private")
    return page


def _parts(model: Model) -> list[str]:
    if not model.finds_instances:
        return [part for part in PARTS if part != "boxes"]
    return [part for part in PARTS if part != "masks" or model.task == "instance segmentation"]


def serve(
    page: gr.Blocks, limits: Limits, *, host: str = "127.0.0.1", port: int = 7860, wait: bool = True
) -> str:
    """Offer the page.

    Args:
        page: of :func:`build_page`.
        limits: those of its uploads.
        host: address to listen at; "0.0.0.0" lets other computers in.
        port: to listen at.
        wait: until Ctrl-C; otherwise return at once, while `page.close()` ends it.

    Returns:
        Its address.

    Raises:
        OSError: the port is taken.
    """
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    _, address, _ = page.queue(max_size=16).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        max_file_size=int(limits.megabytes * 1e6),
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        theme=gr.themes.Default(font=sans, font_mono=mono),
        app_kwargs={
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
            "middleware": [Middleware(SameOriginOnly)],
        },
    )
    print(f"the page is at {address} until Ctrl-C", flush=True)
    if wait:
        page.block_thread()
    return address

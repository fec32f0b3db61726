#!/usr/bin/env python
"""Draw what a trained model finds in images, folders, globs, videos, cameras and streams.

tools/demo.py --config-file CONFIG --weights MODEL.pth --input FILE_OR_FOLDER_OR_GLOB ... [--output FOLDER]
tools/demo.py --config-file CONFIG --weights MODEL.pth --input 0 --save-json found.jsonl
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, tool


@tool
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; status 1 where nothing was drawn."""
    parser = argument_parser(
        description="Draw what a trained model finds in images, videos and live streams."
    )
    parser.add_argument(
        "--config-file", help="LazyConfig of the model (default: what its training kept in the weights)"
    )
    parser.add_argument("--weights", help="checkpoint (default: the config's train.init_checkpoint)")
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="images, folders, globs, videos; or the number of a camera or address of a stream (rtsp://...), "
        "of which the newest frame is always taken, and which Ctrl-C ends",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/predictions"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="drop detections below it (default: %(default)s)"
    )
    parser.add_argument(
        "--save-json",
        type=Path,
        metavar="FILE",
        help="what was found, as a list, or, named .jsonl, a line each as it is found "
        "(default: predictions.json in the output folder)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="images of one size, or frames of a video, that a GPU takes together (default: %(default)s)",
    )
    parser.add_argument("--opts", nargs="+", default=[], help="config overrides, such as train.device=cpu")
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="val=ANNOTATIONS.json:IMAGES",
        help="name the classes of weights that do not, as the training's --data did",
    )
    args = parser.parse_args(argv)

    # imported here: --help needs none of it
    from piip.classification.experiment import classifier_to_show, is_classifier
    from piip.detection.predict import InstanceRenderer, Undrawn, skip_below
    from piip.engine.config import load_config
    from piip.engine.data.custom_data import follow_weights, use_custom_dataset
    from piip.engine.logs.screen import set_up_logs
    from piip.engine.prediction.predict import Predictor, Predicts, predict
    from piip.engine.renderer import Renderer
    from piip.images import printable
    from piip.segmentation.predict import SemanticRenderer

    set_up_logs()
    cfg = load_config(args.config_file, args.opts, weights=args.weights or "")
    weights = args.weights or cfg.train.init_checkpoint
    if not weights:
        parser.error("no weights: give --weights, or set train.init_checkpoint in the config")
    undrawn = Undrawn()
    model: Predicts
    renderer: Renderer
    if is_classifier(cfg):
        if args.data:
            raise ValueError("--data names no classes of a classifier: its weights do")
        model, renderer = classifier_to_show(cfg, weights)
    else:
        follow_weights(cfg, weights)
        use_custom_dataset(cfg, args.data, train=False)
        model = predictor = Predictor(cfg, weights)
        if predictor.metadata.get("thing_classes") is None:
            renderer = SemanticRenderer(predictor.metadata)
        else:
            undrawn = skip_below(predictor.model, args.score_threshold)
            renderer = InstanceRenderer(predictor.metadata, args.score_threshold)
    report = predict(model, renderer, args.input, args.output, batch=args.batch, save_json=args.save_json)
    live = f", {report.passed_over} frames passed over" if report.passed_over else ""
    damaged = f", {len(report.damaged)} videos damaged" if report.damaged else ""
    print(
        f"{report.drawn} images and frames drawn, {len(report.skipped)} files skipped{damaged}{live}: "
        f"{printable(args.output)}"
    )
    if isinstance(renderer, InstanceRenderer):
        if faint := renderer.faint + undrawn.faint:
            print(
                f"{faint} detections that score below {args.score_threshold:g} not drawn: --score-threshold"
            )
        if undrawn.full:
            print(
                f"{undrawn.full} images have as many detections as the model reports at most: raise "
                "test_topk_per_image of its box_predictor"
            )
    return 0 if report.drawn else 1


if __name__ == "__main__":
    main()

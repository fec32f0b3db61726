#!/usr/bin/env python
"""Draw what a trained detector finds in images, folders, globs and videos.

tools/demo.py --config-file CONFIG --weights MODEL.pth --input FILE_OR_FOLDER_OR_GLOB ... [--output FOLDER]
"""

import argparse
import sys
from pathlib import Path

from detectron2.config import LazyConfig
from detectron2.utils.logger import setup_logger

from piip.detection.predict import Predictor, predict

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw what a trained detector finds in images and videos.")
    parser.add_argument("--config-file", required=True, help="LazyConfig of the detector")
    parser.add_argument("--weights", help="checkpoint (default: the config's train.init_checkpoint)")
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, globs, videos")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/predictions"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="drop detections below it (default: %(default)s)"
    )
    parser.add_argument("--opts", nargs="+", default=[], help="config overrides, such as train.device=cpu")
    args = parser.parse_args()

    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    weights = args.weights or cfg.train.init_checkpoint
    if not weights:
        parser.error("no weights: give --weights, or set train.init_checkpoint in the config")
    setup_logger(name="fvcore")
    setup_logger()
    report = predict(Predictor(cfg, weights), args.input, args.output, args.score_threshold)
    print(f"{report.drawn} images and frames drawn, {len(report.skipped)} files skipped: {args.output}")
    sys.exit(0 if report.drawn else 1)

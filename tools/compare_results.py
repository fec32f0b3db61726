#!/usr/bin/env python
"""Draw predictions beside the ground truth.

tools/compare_results.py --config-file CONFIG --results coco_instances_results.json --output FOLDER
"""

import argparse
from pathlib import Path

from detectron2.config import LazyConfig

from piip.detection.compare import compare

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw predictions beside the ground truth.")
    parser.add_argument(
        "--config-file", required=True, help="LazyConfig whose test set the predictions are of"
    )
    parser.add_argument("--results", type=Path, required=True, help="COCO results file an evaluation wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--number", type=int, default=16, help="how many images (default: %(default)s)")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="(default: %(default)s)")
    args = parser.parse_args()
    dataset = LazyConfig.load(args.config_file).dataloader.test.dataset.names
    pictures = compare(
        dataset, args.results, args.output, number=args.number, score_threshold=args.score_threshold
    )
    print(f"{len(pictures)} pictures of ground truth and predictions: {args.output}")

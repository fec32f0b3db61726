#!/usr/bin/env python
"""Make ADE20K's label maps as Detectron2 registers them: tools/prepare_ade20k.py [--root FOLDER]

Reads ADEChallengeData2016/annotations (0 is "other", 1 to 150 are classes) and writes annotations_detectron2,
where classes are 0 to 149 and 255 is ignored.
"""

from collections.abc import Sequence
from pathlib import Path

from piip.engine.command_line import argument_parser, dataset_root, tool


@tool
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argument_parser(description="Make ADE20K's label maps as Detectron2 registers them.")
    parser.add_argument(
        "--root",
        type=Path,
        default=dataset_root() / "ADEChallengeData2016",
        help="folder of the unpacked ADEChallengeData2016.zip (default: %(default)s)",
    )
    root = parser.parse_args(argv).root

    # imported here: --help needs none of it
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    for split in ("training", "validation"):
        source, target = root / "annotations" / split, root / "annotations_detectron2" / split
        files = sorted(source.glob("*.png")) if source.is_dir() else []
        if not files:
            raise FileNotFoundError(
                f"{source} holds no label maps: unpack ADEChallengeData2016.zip (data.csail.mit.edu/places/"
                "ADEchallenge) there, or give its folder with --root"
            )
        target.mkdir(parents=True, exist_ok=True)
        for file in tqdm(files, desc=split, unit="map"):
            labels = np.asarray(Image.open(file), dtype=np.uint8)
            Image.fromarray(labels - np.uint8(1)).save(target / file.name)  # 0 becomes 255
        print(f"{len(files)} label maps: {target}")


if __name__ == "__main__":
    main()

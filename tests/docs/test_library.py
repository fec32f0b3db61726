"""The examples of docs/library.md run, in their order, where Detectron2 cannot be imported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
WITHOUT = """
import sys
for name in ("detectron2", "cv2", "omegaconf", "hydra", "pycocotools"):
    sys.modules[name] = None
"""


def test_examples() -> None:
    text = (REPOSITORY / "docs/library.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 4
    code = "\n".join([WITHOUT, *examples])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "torch.Size([1, 10]) [(192, 16), (384, 30), (768, 46)]"

"""What all tasks share: training, checkpoints, data loading, and PIIP as a backbone of Detectron2.

Importing it silences what Detectron2's and PyTorch's own imports warn of: no user can act on that.
"""

from ..extras import explain_missing
from . import _warnings as _warnings

explain_missing(__name__)

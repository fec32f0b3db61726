"""What all tasks share: training, checkpoints, data loading, and PIIP as a backbone of Detectron2.

Importing it silences what Detectron2's and PyTorch's own imports warn of: no user can act on that.
"""

from . import quiet as quiet

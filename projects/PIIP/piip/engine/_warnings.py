"""Silences warnings of Detectron2's and PyTorch's own code, on which no user can act.

It has to be imported before Detectron2 is, in worker processes too: that is why the package does so.
"""

from __future__ import annotations

import logging
import warnings

_MESSAGES = (
    "pkg_resources is deprecated",
    r"`torch\.jit\.\w+` is deprecated",
    r"torch\.meshgrid: in an upcoming release",
    r"Importing from timm\.models\.\w+ is deprecated",
)
_LOGGERS = (
    "torch.fx._symbolic_trace",  # of two ways to ask whether a model is being traced
    "torch.utils.cpp_extension",  # no GPU is found
    "torch.multiprocessing.spawn",  # the other processes of a run that failed are ended
)

for _message in _MESSAGES:
    warnings.filterwarnings("ignore", message=_message)
for _name in _LOGGERS:
    logging.getLogger(_name).setLevel(logging.ERROR)

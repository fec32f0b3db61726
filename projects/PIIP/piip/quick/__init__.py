"""Generated data sets, for demos and tests."""

from ..extras import explain_missing

explain_missing(__name__)

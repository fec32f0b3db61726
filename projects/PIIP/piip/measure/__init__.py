"""What whole models cost: operations, latency, memory, and the operator's share of it."""

from ..extras import explain_missing

explain_missing(__name__)

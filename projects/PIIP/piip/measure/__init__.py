"""What whole models cost: operations, latency, memory, and the operator's share of it."""

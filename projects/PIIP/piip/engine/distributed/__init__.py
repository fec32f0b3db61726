"""All that knows of several processes: collectives, launchers, sharding, preemption."""

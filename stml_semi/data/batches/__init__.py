"""From tables to the batches of a run: plan, pool, decoding."""

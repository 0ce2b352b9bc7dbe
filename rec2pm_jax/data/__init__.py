"""From raw logs to batches: sources -> canonical interactions -> prepared dataset -> pipeline."""

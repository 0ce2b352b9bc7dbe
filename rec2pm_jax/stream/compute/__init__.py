"""Calls of the model: memory updates in batches, in a thread or at once, and reads of requests."""

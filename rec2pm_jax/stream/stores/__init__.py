"""Durable states: a user as bytes, the stores that keep them, and the thread that commits them."""

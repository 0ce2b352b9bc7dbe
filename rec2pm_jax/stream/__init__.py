"""Streaming: one user's memory follows their events, and recommendations are read from it."""

"""Exported models: `update` and `read` as programs that need JAX alone, in one directory."""

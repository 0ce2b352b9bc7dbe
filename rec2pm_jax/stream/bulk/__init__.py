"""Recommend to all users of a dataset or a store at once, into files: `launch.recommend`."""

"""HTTP over the engine of a stream, and the page at `/`; needs the extra `serve`."""

"""Lines in and out: sources of input, the parser of events and requests, and output files."""

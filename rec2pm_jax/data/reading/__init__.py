"""Helpers of the sources: downloading and reading files, with errors that name what is wrong.

download.py         downloads that resume and are checked
scan.py             a publisher's large files, in batches
log_files.py        your own logs: CSV, TSV, Parquet, JSON-lines
column_checks.py    columns as ids and numbers; errors name file, row and column
times.py            times: units, zones, ISO text
"""

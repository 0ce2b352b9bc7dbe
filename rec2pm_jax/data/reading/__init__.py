"""Helpers of the sources: downloading and reading files, with errors that name what is wrong.

download.py         downloads that resume and are checked
scan.py             a publisher's large files, in batches
publisher_rows.py   the row of such a file that cannot be read
log_files.py        your own logs: CSV, TSV, Parquet, JSON-lines
text_lines.py       their text: encodings, separators, and rows that cannot be read
row_filters.py      which rows are read (--drop, --keep)
values.py           the rules for single ids, times and numbers
column_checks.py    the same for columns of ids and numbers
times.py            the same for columns of times
report.py           rows that cannot be used, counted over all files
"""

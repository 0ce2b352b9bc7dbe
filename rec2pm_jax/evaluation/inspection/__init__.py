"""Inspection: what a prepared dataset is like, before a model is trained on it.

measure.py     the numbers: `inspect_dataset` returns an `Inspection`
settings.py    which settings of a model the numbers suggest, and why
problems.py    what is unusual about them, and what to do
report.py      a report of one screen
figures.py     six panels as PNG
"""

from rec2pm_jax.evaluation.inspection.measure import Inspection, inspect_dataset
from rec2pm_jax.evaluation.inspection.problems import find_problems
from rec2pm_jax.evaluation.inspection.report import format_report

__all__ = ["Inspection", "find_problems", "format_report", "inspect_dataset"]

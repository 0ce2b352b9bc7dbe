"""The examples run from an empty directory, and the notebook is stored without outputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


@pytest.mark.slow
def test_train_and_recommend(tmp_path):
    pytest.importorskip("pandas", reason="needs pip install 'rec2pm_jax[examples]'")
    command = [sys.executable, str(EXAMPLES / "train_and_recommend.py")]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    answers = result.stdout.splitlines()[-5:]
    assert sum("(bought)" in line for line in answers) >= 3, result.stdout


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs pip install 'rec2pm_jax[examples]'")
    nbformat = pytest.importorskip("nbformat")
    # The kernel is a separate process; it must not look for eight devices as tests do.
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert (tmp_path / "quickstart/run/train/summary.json").is_file()


def test_notebook_is_stored_without_outputs():
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        assert not cell.get("outputs"), f"cell {number}: clear the outputs before you commit"
        assert cell.get("execution_count") is None, f"cell {number}"

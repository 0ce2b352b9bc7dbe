"""Triton's Python backend for an exported model; the work is done by examples/serve_exported.py.

Copy `serve_exported.py` and `exported_model.py` beside this file. The backend needs JAX and NumPy.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # Triton provides it

sys.path.insert(0, str(Path(__file__).parent))
from exported_model import ExportedModel, Rejected  # noqa: E402
from serve_exported import User, serve_line  # noqa: E402


class TritonPythonModel:
    """Keeps the users of one model instance; they end with it, as there is no store."""

    def initialize(self, args: dict[str, Any]) -> None:
        """Load the directory that the parameter `exported` of config.pbtxt names."""
        config = json.loads(args["model_config"])
        self.model = ExportedModel(Path(config["parameters"]["exported"]["string_value"]))
        self.users: dict[str, User] = {}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests in order; each has LINES, and gets as many ANSWERS."""
        responses = []
        for request in requests:
            lines = pb_utils.get_input_tensor_by_name(request, "LINES").as_numpy()
            answers = [json.dumps(self._answer(line), ensure_ascii=False) for line in lines.ravel()]
            found = np.array([answer.encode() for answer in answers], np.object_)
            tensor = pb_utils.Tensor("ANSWERS", found.reshape(lines.shape))
            responses.append(pb_utils.InferenceResponse(output_tensors=[tensor]))
        return responses

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            text = line.decode(errors="replace")
            return serve_line(self.model, self.users, text) or {}
        except Rejected as error:
            reason, message = error.args
            return {"error": message, "reason": reason}

"""Dockerfiles, the compose file and the Triton model repository, checked without their servers."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from rec2pm_jax.stream.export.directory import write_export
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
TRITON = ROOT / "examples" / "triton" / "rec2pm"


def ignored(path: str) -> bool:
    """Return whether .dockerignore leaves a path of the repository out."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    assert "*" in rules
    return f"!{path.split('/')[0]}" not in rules


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_dockerfiles(file):
    """They copy what exists and is sent, run as a user without rights, and check their health."""
    text = file.read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    for keyword, rest in steps:
        if keyword == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists() and not ignored(source), source
    users = [rest for keyword, rest in steps if keyword == "USER"]
    assert users == ["10001"] and "useradd" in text and "--uid 10001" in text
    assert any(keyword == "HEALTHCHECK" for keyword, _ in steps)
    last = {keyword: rest for keyword, rest in steps}
    assert json.loads(last["ENTRYPOINT"])[0] == "rec2pm" and json.loads(last["CMD"])
    assert all("@" not in rest for keyword, rest in steps if keyword == "FROM")
    if shutil.which("hadolint"):
        done = subprocess.run(["hadolint", str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_compose():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    serve, valkey = services["serve"], services["valkey"]
    assert (ROOT / serve["build"]["dockerfile"]).is_file()
    assert {"yes", "always"} <= set(valkey["command"])  # commits survive a power cut
    assert serve["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    assert "--store=redis://valkey:6379/0" in serve["command"]
    # A run stores the path that its dataset has on the host, so the command names it.
    assert "--data=${DATA:-runs/demo/data}" in serve["command"]
    assert "./runs:/work/runs:ro" in serve["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in serve["ports"])
    assert "ports" not in valkey


def parse_pbtxt(text: str) -> dict:
    """Parse a message in protobuf's text format, as far as config.pbtxt needs it."""
    tokens = re.findall(r'"[^"]*"|[\w.-]+|[\[\]{}:,]', re.sub(r"#.*", "", text))

    def value() -> object:
        token = tokens.pop(0)
        if token == "{":
            return fields("}")
        if token == "[":
            found = []
            while tokens[0] != "]":
                found.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return found
        return token[1:-1] if token[0] == '"' else int(token) if token[-1].isdigit() else token

    def fields(end: str) -> dict:
        found = {}
        while tokens and tokens[0] != end:
            name = tokens.pop(0)
            assert re.fullmatch(r"[a-z_]+", name), name
            if tokens[0] == ":":
                tokens.pop(0)
            found[name] = value()
        if end:
            tokens.pop(0)
        return found

    return fields("")


class Tensor:
    """What the backend uses of Triton's tensors."""

    def __init__(self, name: str, values: np.ndarray):
        self._name, self._values = name, values

    def as_numpy(self) -> np.ndarray:
        return self._values


def test_triton_answers_lines(tmp_path, monkeypatch):
    """The repository as the documentation assembles it, with a stub of Triton's module."""
    config = parse_pbtxt((TRITON / "config.pbtxt").read_text())
    assert (config["name"], config["backend"], config["max_batch_size"]) == ("rec2pm", "python", 0)
    [given], [found] = config["input"], config["output"]
    assert (given["name"], found["name"]) == ("LINES", "ANSWERS")
    assert {x["data_type"] for x in (given, found)} == {"TYPE_STRING"}
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_CPU"}]
    assert config["parameters"]["key"] == "exported"

    dataset = make_data(tmp_path, categories=3)
    recommender = make_recommender(dataset, make_config())
    write_export(recommender, {"step": 1, "data_hash": "d"}, tmp_path / "exported", 6)
    folder = tmp_path / "models" / "rec2pm" / "1"
    folder.mkdir(parents=True)
    for file in (TRITON / "1" / "model.py", *(ROOT / "examples").glob("*export*.py")):
        shutil.copy(file, folder)
    stub = types.ModuleType("triton_python_backend_utils")
    stub.Tensor = Tensor
    stub.InferenceResponse = lambda output_tensors: output_tensors
    stub.get_input_tensor_by_name = lambda request, name: request[name]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("exported_model", "serve_exported"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("triton_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert Path(sys.modules["serve_exported"].__file__).parent == folder

    backend = module.TritonPythonModel()
    value = {"string_value": str(tmp_path / "exported")}
    backend.initialize({"model_config": json.dumps({"parameters": {"exported": value}})})
    history = raw_events(dataset, 3)
    lines = [{"user": "x", **event} for event in history]
    lines += [{"user": "x", "recommend": 4, "allow": {"categories": ["c1"]}}, {"user": "x"}]
    given = np.array([json.dumps(line).encode() for line in lines], np.object_)
    [[tensor]] = backend.execute([{"LINES": Tensor("LINES", given)}])
    *events, answer, bad = map(json.loads, tensor.as_numpy())
    assert events == [{}] * len(history) and bad["reason"] == "malformed"
    user = recommender.observe(recommender.new_user(), history)
    expected = recommender.recommend(user, 4, filters={"allow": {"categories": ["c1"]}})
    assert [row["item"] for row in answer["items"]] == [row.item for row in expected]
    scores = [row["score"] for row in answer["items"]]
    np.testing.assert_allclose(scores, [row.score for row in expected], rtol=1e-5, atol=1e-5)

"""Schemathesis over the OpenAPI description, against a real process: no crash, no surprise."""

from __future__ import annotations

import contextlib

import pytest

from tests.helpers.serve_client import ServiceProcess
from tests.helpers.stream import make_config, make_data, save_run

schemathesis = pytest.importorskip("schemathesis", reason="needs pip install 'rec2pm_jax[test]'")
from hypothesis import HealthCheck, given, settings, strategies  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402
from schemathesis import GenerationMode, checks  # noqa: E402
from schemathesis.specs.openapi import checks as openapi_checks  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    save_run(folder / "run", make_data(folder), make_config(times=True))
    flags = (
        "--workdir=run",
        "--store=store",
        "--journal=journal",
        "--commit_s=0",
        "--max_body_kb=64",
    )
    process = ServiceProcess(folder, *flags)
    yield process
    process.kill()


CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_described(process, mode):
    url = f"http://127.0.0.1:{process.port}/openapi.json"
    operations = [result.ok() for result in schemathesis.openapi.from_url(url).get_all_operations()]
    assert len(operations) == 11  # those of the page, too

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=strategies.data())
    def run(operation, data):
        case = data.draw(operation.as_strategy(generation_mode=mode))
        case.call_and_validate(checks=CHECKS, timeout=60)

    for operation in operations:
        with contextlib.suppress(Unsatisfiable):  # some have nothing that could be wrong
            run(operation)
        assert process.process.poll() is None, process.log.read_text()


def test_the_service_works_after_all_of_it(process):
    assert process.call("GET", "/health") == (200, {"status": "ok"})
    event = {"user": "after", "item": "i1", "time": 1_600_000_000}
    assert process.call("POST", "/events", event)[1]["accepted"] == 1
    assert process.call("POST", "/recommend", {"user": "after"})[1]["events"] == 1
    assert "Traceback" not in process.log.read_text()
    assert "done:" in process.end()

"""`harness run --mlflow`: what MLflow holds is what the result says; nothing happens unasked; a failure is told and loses no result."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from command_line import cli
from stub_server import address, listening

from harness.api import find_results, read_result, scores_of

mlflow = pytest.importorskip("mlflow")
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

LISTENER = """
from pathlib import Path
from harness.api import hookimpl

@hookimpl
def harness_on_result(result):
    if "{name}" == "breaks":
        raise RuntimeError("the tracker is\\ngone")
    Path("{told}").write_text(result.method.name)
"""


def run(folder: Path, *words: str) -> int:
    base = ["run", "--task", "toy", "--method", "max", "--limit", "30", "--layers", "last", "--bootstrap", "10"]
    return cli(*base, "-o", folder / "r", "--cache-dir", folder / "c", *words)


def logged(where: str) -> tuple[MlflowClient, Any]:
    client = MlflowClient(tracking_uri=where)
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    return client, run


def test_a_run_of_mlflow_holds_options_averages_with_intervals_every_concept_and_the_way_to_the_result(tmp_path: Path):
    assert run(tmp_path, "--mlflow", str(tmp_path / "ml")) == 0
    client, found = logged((tmp_path / "ml").as_uri())
    (folder,) = find_results(tmp_path / "r")
    read = read_result(folder)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "toy / max"
    assert found.data.tags["harness.folder"] == str(folder)
    assert found.data.tags["harness.run_id"] == read["run_id"]
    assert found.data.params["limit"] == "30"
    assert found.data.params["task.fingerprint"] == read["task"]["fingerprint"]
    assert found.data.params["method.detector"] == "max"
    assert "output" not in found.data.params
    shown = [s for s in scores_of(read) if s.concept in ("macro", "weighted") and s.layer == "chosen"]
    expected = {}
    for s in shown:
        name = f"{s.metric}.{s.concept}"
        expected |= {name: s.value, f"{name}.ci_low": s.ci_low, f"{name}.ci_high": s.ci_high}
    assert found.data.metrics == {key: value for key, value in expected.items() if value is not None}
    table = json.loads(Path(client.download_artifacts(found.info.run_id, "per_concept.json", str(tmp_path))).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    f1 = {row["concept"]: (row["value"], row["layer"]) for row in rows if row["metric"] == "f1"}
    choices = {choice["concept"]: choice["layer"] for choice in read["choices"]}
    concepts = {s.concept: s.value for s in scores_of(read) if s.metric == "f1" and s.layer == "chosen"}
    assert f1 == {concept: (concepts[concept], layer) for concept, layer in choices.items()}


def test_nothing_of_mlflow_is_imported_or_written_before_it_is_asked_for(tmp_path: Path):
    code = (
        "import sys\nfrom harness.cli import main\n"
        "main(['run', '--task', 'toy', '--method', 'max', '--limit', '20', '--bootstrap', '0', '-o', 'r', '--cache-dir', 'c'])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'mlflow']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"r", "c"}


def test_a_dry_run_tells_no_tracker(tmp_path: Path):
    assert run(tmp_path, "--mlflow", str(tmp_path / "ml"), "--dry-run") == 0
    assert not (tmp_path / "ml").exists()


def test_without_the_package_the_run_does_not_start_and_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert run(tmp_path, "--mlflow", str(tmp_path / "ml")) == 2
    assert capsys.readouterr().err == (
        "error: --mlflow needs the package 'mlflow', which is not installed; run: pip install 'concept-harness[mlflow]'\n"
    )
    assert not (tmp_path / "r").exists()


def test_a_server_that_does_not_answer_stops_the_run_before_it_starts_and_no_password_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_MLFLOW", "http://me:hunter2@127.0.0.1:9")
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --mlflow http://127.0.0.1:9 does not answer (")
    assert said.endswith("); start the server, or name a folder\n")
    assert "hunter2" not in said
    assert not (tmp_path / "r").exists()


def test_a_place_that_mlflow_does_not_know_is_one_line(tmp_path, capsys):
    assert run(tmp_path, "--mlflow", "nowhere://x") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --mlflow nowhere://x cannot be used; ")
    assert said.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert run(tmp_path, "--mlflow", str(tmp_path / "file")) == 2
    assert f"cannot write to {tmp_path / 'file'}" in capsys.readouterr().err


def test_a_failure_of_mlflow_keeps_the_result_and_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    def full(*given: Any, **more: Any) -> None:
        raise MlflowException("no space left at http://me:hunter2@host")

    monkeypatch.setattr(MlflowClient, "log_dict", full)
    assert run(tmp_path, "--mlflow", str(tmp_path / "ml")) == 1
    (folder,) = find_results(tmp_path / "r")
    out = capsys.readouterr()
    assert f"wrote {folder}" in out.out
    assert out.err.splitlines()[-1] == (
        f"not told: plugin mlflow: MLflow did not take max; no space left at http://host; the result is complete in {folder}"
    )
    assert logged((tmp_path / "ml").as_uri())[1].info.status == "FAILED"


def test_a_listener_that_breaks_stops_neither_the_others_nor_the_next_run(tmp_path, capsys):
    plugins = []
    for name in ("breaks", "listens"):
        (tmp_path / f"{name}.py").write_text(LISTENER.format(name=name, told=tmp_path / "told"))
        plugins += ["-p", str(tmp_path / f"{name}.py")]
    assert run(tmp_path, *plugins, "--task", "toy:seed=1", "--json") == 1
    assert (tmp_path / "told").read_text() == "max"
    assert len(list(find_results(tmp_path / "r"))) == 2
    out = capsys.readouterr()
    assert len(json.loads(out.out)) == 2
    told = [line for line in out.err.splitlines() if line.startswith("not told: plugin breaks: RuntimeError: the tracker is")]
    assert len(told) == 2


class Stub(BaseHTTPRequestHandler):
    """As much of a tracking server as a run asks of it."""

    def do_GET(self) -> None:
        self.answer({"run": self.run()} if "runs/get" in self.path else {})

    def do_HEAD(self) -> None:
        self.answer({})

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        self.server.sent.append((self.path, sent))  # type: ignore[attr-defined]
        made = {"experiments/create": {"experiment_id": "7"}, "runs/create": {"run": self.run()}}
        self.answer(next((answer for end, answer in made.items() if self.path.endswith(end)), {}))

    def run(self) -> Any:
        artifacts = self.server.artifacts  # type: ignore[attr-defined]
        return {"info": {"run_id": "r1", "experiment_id": "7", "status": "RUNNING", "artifact_uri": artifacts}, "data": {}}

    def answer(self, body: Any) -> None:
        missing = self.path.partition("?")[0].endswith("get-by-name")
        data = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"} if missing else body).encode()
        self.send_response(404 if missing else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *given: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    with listening(Stub) as http:
        http.sent, http.artifacts = [], (tmp_path / "artifacts").as_uri()  # type: ignore[attr-defined]
        yield http


def test_a_tracking_server_gets_the_same_and_stdout_stays_the_answer(tmp_path: Path, server: Any, capsys):
    assert run(tmp_path, "--mlflow", address(server), "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    (batch,) = [sent for path, sent in server.sent if path.endswith("runs/log-batch")]
    (folder,) = find_results(tmp_path / "r")
    value = next(s.value for s in scores_of(read_result(folder)) if (s.metric, s.layer, s.concept) == ("f1", "chosen", "macro"))
    assert value in [metric["value"] for metric in batch["metrics"] if metric["key"] == "f1.macro"]
    assert (tmp_path / "artifacts" / "per_concept.json").is_file()
    assert [sent["status"] for path, sent in server.sent if path.endswith("runs/update")] == ["FINISHED"]

"""A result as a run of MLflow: options as parameters, averages with their interval ends as metrics, one table of all concepts.

The experiment is the task, the run `<backbone> / <method>`; its tag `harness.folder` leads to the result, which holds what MLflow has no
place for. MLflow's report of its own use is switched off, and a server gets few retries: its default waits for minutes.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import HarnessError, check_output, unreachable

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from harness.api import Result

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""Set where the environment does not say otherwise."""
LONGEST = 5000
TABLE = "per_concept.json"
AVERAGES = ("macro", "weighted")


def opened(where: str) -> MlflowClient:
    """A client of the folder or server, after it answered once."""
    if find_spec("mlflow") is None:
        raise HarnessError(
            "--mlflow needs the package 'mlflow', which is not installed; run: pip install 'concept-harness[mlflow]'"
        )
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if where.startswith(("http://", "https://")):
        if cause := unreachable(where):
            raise HarnessError(f"--mlflow {plain(where)} does not answer ({plain(cause)}); start the server, or name a folder")
    elif "://" not in where and where != "databricks":
        folder = Path(where).expanduser().absolute()
        check_output(folder)
        where = folder.as_uri()
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(tracking_uri=where, registry_uri=where)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        raise HarnessError(
            f"--mlflow {plain(where)} cannot be used; {plain(error)}; name a folder, or http://HOST:PORT"
        ) from error
    return client


def plain(said: object) -> str:
    """One line, without the name and password of an address."""
    return re.sub(r"//[^/@\s]+@", "//", " ".join(str(said).split()))[:300]


def log(client: MlflowClient, result: Result) -> None:
    """One run; where something fails on the way the run is marked failed, and the cause is raised."""
    from mlflow.entities import Metric, Param
    from mlflow.exceptions import MlflowException

    now = int(1000 * time.time())
    metrics = [Metric(key, value, now, 0) for key, value in averages(result).items()]
    params = [Param(key, value[:LONGEST]) for key, value in parameters(result).items()]
    try:
        run = client.create_run(
            experiment(client, str(result.task["name"])),
            run_name=f"{result.backbone['name']} / {result.method.name}",
            tags={"harness.folder": str(result.path), "harness.run_id": result.path.name if result.path else ""},
        ).info.run_id
        try:
            client.log_batch(run, metrics=metrics, params=params)
            client.log_dict(run, table(result), TABLE)
            client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": TABLE, "type": "table"}]))
        except BaseException:
            with suppress(MlflowException, OSError):  # the first failure is the one to tell
                client.set_terminated(run, "FAILED")
            raise
        client.set_terminated(run)
    except (MlflowException, OSError) as error:
        raise HarnessError(f"MLflow did not take {result.method.name}; {plain(error)}") from error


def experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment, made where it is not there."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found is not None else client.create_experiment(name)


def key(*words: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w.\- /]", "_", ".".join(words))


def averages(result: Result) -> dict[str, float]:
    """`f1.macro`, `f1.macro.ci_low`, `f1.macro.ci_high`, ...: at the layers chosen on cal. An undefined number is left out."""
    found: dict[str, float | None] = {}
    for score in result.scores:
        if score.concept in AVERAGES and score.layer in ("chosen", None):
            name = (score.metric, score.concept)
            found |= {key(*name): score.value, key(*name, "ci_low"): score.ci_low, key(*name, "ci_high"): score.ci_high}
    return {name: value for name, value in found.items() if value is not None}


def parameters(result: Result) -> dict[str, str]:
    """What was run: the options, the recipe's parts, the task's content, the weights."""
    spec, method = result.spec, result.method
    options = {name: value for name, value in vars(spec).items() if name not in ("methods", "output", "cache_dir")}
    recipe = {"concepts": method.concepts, "detector": method.detector, "localizer": method.localizer, "scorer": method.scorer}
    about = {
        "method": method.name,
        **{f"method.{name}": value for name, value in recipe.items()},
        "task.version": result.task["version"],
        "task.fingerprint": result.task["fingerprint"],
        "backbone.revision": result.backbone["revision"],
        "harness": result.provenance.get("harness"),
    }
    return {key(name): str(value) for name, value in {**options, **about}.items() if value is not None}


def table(result: Result) -> dict[str, list[Any]]:
    """Every metric of every concept with its interval, and what was chosen on cal, as MLflow shows a table: columns and rows."""
    choices = {choice.concept: choice for choice in result.choices}
    scored, chosen = ("concept", "metric", "value", "ci_low", "ci_high", "n", "reason"), ("layer", "level", "cutoff")
    rows = [
        [getattr(row, name) for name in scored] + [getattr(choices[row.concept], name) for name in chosen]
        for row in result.scores
        if row.concept in choices and row.layer in ("chosen", None)
    ]
    return {"columns": [*scored, *chosen], "data": rows}

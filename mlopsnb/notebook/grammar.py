"""The magics as data: which there are, what they take, and which Python function each one calls.

Parser, help, completion and the test against the functions' signatures all read this table; it does nothing.
"""

from __future__ import annotations

from dataclasses import replace

from mlopsnb.notebook.arguments import (
    Argument,
    Verb,
    deployed,
    expression,
    flag,
    number,
    numbers,
    off,
    source,
    text,
    texts,
    whole,
    words,
)

LOADS = ("engine", "kind", "minikube", "k3d")

_MODEL = expression("model", "the model: a variable or an expression")
_WHAT = source("what", "a model, artifact, model version, models:/… or runs:/… address")
_DEPLOYMENT = deployed("deployment", "a deployment's name, or a variable that holds one")
_EXAMPLE = expression(
    "example", "a few rows the model takes: array, tensor, DataFrame, dict or tuple of them"
)
_REFERENCE = expression("reference", "training data that later traffic is compared with")
_METRICS = numbers("metrics", "metrics to log; repeatable, or a dict variable")
_FORMAT = text("format", "format of the export; chosen by the model if left out", backend="format")
_TARGET = text("target", "where it runs; the setting `target` if left out", backend="target")


def _method(
    name: str,
    summary: str,
    *arguments: Argument,
    method: str = "",
    options: tuple[Argument, ...] = (),
    examples: tuple[str, ...],
    reads: bool = False,
    returns: bool = True,
) -> Verb:
    """Return a verb that is a method of the deployment that comes first, by default the one of its name."""
    return Verb(
        name=name,
        twin=f"mlopsnb.deployment:Deployment.{method or name}",
        summary=summary,
        positionals=(_DEPLOYMENT, *arguments),
        options=(*options, _TARGET),
        examples=examples,
        reads=reads,
        returns=returns,
    )


EXPORT = Verb(
    name="export",
    twin="mlopsnb.packages:export",
    summary="Export a model and prove that the export answers as the original does.",
    positionals=(_MODEL,),
    options=(
        _EXAMPLE,
        _FORMAT,
        text("into", "directory to write to; the cache if left out"),
        number("tolerance", "largest error allowed; by dtype if left out"),
    ),
    examples=("%export model --example X_test[:5]", "artifact = %export model --example (ids, mask)"),
)

LOG_MODEL = Verb(
    name="log_model",
    twin="mlopsnb.flow:log",
    summary="Log an exported model to MLflow as the next version of a registered model.",
    positionals=(expression("artifact", "what %export returned"),),
    options=(
        text("name", "name of the registered model", required=True),
        _REFERENCE,
        _METRICS,
        texts("params", "parameters to log; repeatable, or a dict variable"),
        texts("tags", "tags to set; repeatable, or a dict variable"),
        text("alias", "alias to give the version, such as champion"),
    ),
    examples=("version = %log_model artifact --name fraud --metrics accuracy={acc} --alias champion",),
)

_WORKLOAD = (
    whole("replicas", "containers that share the traffic; 1 if left out"),
    whole("min_replicas", "fewest, where the target scales by itself"),
    whole("max_replicas", "most, where the target scales by itself"),
    text("cpu", "cores for each, such as 2 or 500m"),
    text("memory", "memory for each, such as 512Mi"),
    whole("gpu", "GPUs for each"),
    words("secrets", "name of a Secret whose keys become variables; repeatable"),
    words("config_maps", "name of a ConfigMap whose keys become variables; repeatable"),
    texts("node_selector", "label of the nodes to run on; repeatable, or a dict variable"),
    words("tolerations", "taint to put up with, such as dedicated=ml:NoSchedule; repeatable"),
    text(
        "expose",
        "how clients outside reach it; not at all if left out",
        choices=("cluster", "nodeport", "loadbalancer", "ingress", "gateway"),
    ),
    text("host", "its name in an ingress or a gateway"),
    flag("network_policy", "let in only what the cluster's policies allow"),
    text("platform", "what serves it on a cluster; kubernetes if left out", choices=("kubernetes", "kserve")),
    text("ttl", "how long it may stay, such as 7d, until a clean-up removes it"),
)
"""What a deployment may use and how it is reached; each target says which of these it knows."""

DEPLOY = Verb(
    name="deploy",
    twin="mlopsnb.flow:deploy",
    summary="Serve a model. Steps that are missing (export, proof, log) are done first.",
    positionals=(replace(_WHAT, help=_WHAT.help.replace("version,", "version, image,")),),
    options=(
        text("name", "name of the deployment; by the variable's or the model's if left out"),
        _EXAMPLE,
        _REFERENCE,
        _METRICS,
        _FORMAT,
        _TARGET,
        whole("port", "port to serve on; a free one if left out"),
        whole("grpc_port", "serve gRPC too, on this port; 0 for a free one, kept later; off if left out"),
        texts("env", "environment variable of the server; repeatable, or a dict variable"),
        whole("workers", "server processes that share the port; 1 if left out"),
        whole("cache_bytes", "memory to keep answers in for rows that come again; off if left out"),
        number(
            "capture",
            "share of the requests whose rows are written to files, for labels to come; none if left out",
        ),
        words("mask", "input, output or feature that is left out of these files; repeatable"),
        source("fallback", "a smaller model of the same signature, which answers while this one cannot"),
        *_WORKLOAD,
        text(
            "strategy",
            "how it takes over; rolling if left out",
            choices=("rolling", "blue-green", "canary", "ab", "shadow"),
        ),
        text("match", "the requests for the new one of an ab, such as header:X-Group=b"),
        text(
            "canary",
            "its shares of the traffic in percent, such as 10,50; a single one stays until %promote or %rollback",
        ),
        text("gate", 'what it has to keep under traffic, such as "error_rate<0.01 and p99_ms<200"'),
        text("pause", "how long each gate or share takes; 30s if left out"),
        flag("force", "deploy also what runs already in just this way"),
        off("wait", "go on in the background once the model is logged; the card tells how"),
        number("timeout", "seconds to wait until it is ready"),
        flag("dry_run", "show what would be done, and do nothing"),
    ),
    examples=(
        "%deploy model",
        "dep = %deploy models:/fraud/3 --target process",
        "%deploy model --target docker --replicas 2 --cpu 500m --memory 512Mi",
        '%deploy models:/fraud/4 --gate "error_rate<0.01 and p99_ms<200" --pause 1m',
        "dep = %deploy model --target kubernetes --no-wait",
        "%deploy model --example X_test[:5] --dry-run",
    ),
)

BUILD = Verb(
    name="build",
    twin="mlopsnb.building:build",
    summary="Build a serving image, with or without a container engine. Steps that are missing are done first.",
    positionals=(_WHAT,),
    options=(
        text("name", "name of the image; by the variable's or the model's if left out"),
        _EXAMPLE,
        _FORMAT,
        text(
            "builder", "how it is built; without an engine if left out", backend="builder", choices=("auto",)
        ),
        text("base", "image to stand on; python:3.X-slim of this kernel if left out"),
        text("registry", "where to push it, such as ghcr.io/team"),
        flag("push", "push it to the registry, or fail"),
        text("load", "load it into an engine or a local cluster", choices=LOADS),
        text("output", "write an OCI layout: a directory, or a .tar"),
        text("export", "write a Dockerfile and what it needs to this directory, build nothing"),
        text("platform", "platform it runs on, such as linux/arm64; this machine's if left out"),
        text("accelerator", "cpu or cuda; cpu if left out", choices=("cpu", "cuda")),
        words("requirements", "a package the model needs besides, as pip takes it; repeatable"),
        words("code_paths", "a local module or package the model needs; repeatable"),
        text("max_size", "fail if it is larger when compressed, such as 900MB"),
        flag("separate_weights", "keep the model's largest file in an image of its own"),
        text(
            "scan",
            "fail at a known vulnerability of this severity or graver; needs trivy or grype",
            choices=("low", "medium", "high", "critical"),
        ),
        text("sign", "file of the private key to sign the image with"),
        words("apt", "a Debian package to install first, by an engine; repeatable"),
        words("steps", "an instruction of a Dockerfile to carry out first; repeatable"),
    ),
    examples=(
        "image = %build model --registry ghcr.io/team",
        "%build models:/fraud/3 --load engine",
        "%build artifact --name fraud --output fraud.tar --max-size 900MB",
    ),
)

PREDICT = _method(
    "predict",
    "Ask a deployment for predictions.",
    expression("x", "rows to predict on: a variable or an expression"),
    examples=("%predict fraud X_test[:3]", "y = %predict dep X_live"),
    reads=True,
)

DEPLOYMENTS = Verb(
    name="deployments",
    twin="mlopsnb.deployment:deployments",
    summary="List what is deployed.",
    options=(_TARGET,),
    examples=("%deployments", "%deployments --json"),
    reads=True,
)

ATTACH = Verb(
    name="attach",
    twin="mlopsnb.deployment:get",
    summary="Get hold of a deployment that runs already, and show its rollout if that goes on in the background.",
    positionals=(deployed("name", "the deployment's name"),),
    options=(_TARGET,),
    examples=("dep = %attach fraud",),
    reads=True,
)

LOGS = _method(
    "logs",
    "Show the log of a deployment.",
    options=(
        whole("tail", "only the last lines"),
        whole("revision", "the revision to read; the one that serves if left out"),
    ),
    examples=("%logs fraud --tail 50",),
    reads=True,
)

METRICS = _method(
    "metrics",
    "Show what is sent to a deployment and how it answers, per revision: rates, errors, quantiles, queue, memory.",
    options=(text("seconds", "how long to watch, such as 60 or 5m; a second if left out"),),
    examples=("%metrics fraud", "traffic = %metrics fraud --seconds 2m"),
    reads=True,
)

ROLLBACK = _method(
    "rollback",
    "Serve an earlier model again: the previous one, or the stable one beside a canary.",
    options=(whole("to", "the revision to go back to; the one before if left out"),),
    examples=("%rollback fraud", "%rollback fraud --to 3"),
)

PROMOTE = _method(
    "promote",
    "Give the canary of a deployment all traffic.",
    examples=("%promote fraud",),
)

SCALE = _method(
    "scale",
    "Serve a deployment with so many replicas.",
    whole("n", "how many replicas"),
    examples=("%scale fraud 3",),
)

UNDEPLOY = _method(
    "undeploy",
    "Stop a deployment and remove it with its history.",
    method="delete",
    examples=("%undeploy fraud",),
    returns=False,
)

CLEANUP = Verb(
    name="cleanup",
    twin="mlopsnb.cleaning:cleanup",
    summary="Remove deployments that are past their time, and what builds left in the cache.",
    options=(
        flag("images", "layers and environments of past builds, in the cache"),
        flag("deployments", "deployments whose TTL has passed"),
        text("older_than", "deployments last deployed longer ago, such as 7d"),
        text("owner", "whose deployments; yours if left out, * for all"),
        text("target", "where to look; on every target if left out", backend="target"),
        flag("dry_run", "show what would be removed, and remove nothing"),
    ),
    examples=("%cleanup --older-than 7d --dry-run", "%cleanup --deployments --images"),
)

_THRESHOLDS = (
    number("threshold", "smallest effect that counts as drift"),
    number("q", "false discovery rate over all features"),
)

LIVE_DRIFT = _method(
    "drift",
    "Compare what a deployment was asked with the reference that its model was logged with.",
    options=(
        text("since", "look so far back, such as 30m or 6h; a day if left out"),
        whole("revision", "the revision to look at; the one that serves if left out"),
        *_THRESHOLDS,
    ),
    examples=("%drift fraud", "report = %drift fraud --since 6h"),
    reads=True,
)

DRIFT = Verb(
    name="drift",
    twin="mlopsnb.monitoring:drift",
    summary="Compare two data sets, or a deployment's traffic with its reference, and say which features drifted.",
    positionals=(
        expression("reference", "the data to compare with, such as the training data"),
        expression("current", "the data of today"),
    ),
    options=(
        text("method", "the statistic; by each column's type if left out"),
        *_THRESHOLDS,
        expression("outputs", "the model's answers on both: (on the reference, on the current data)"),
    ),
    examples=("%drift X_train X_live", "report = %drift train live --threshold 0.2"),
    alone=LIVE_DRIFT,
    reads=True,
)

DASHBOARD = Verb(
    name="dashboard",
    twin="mlopsnb.notebook.dashboard:dashboard",
    summary="Show all deployments live: states, versions, traffic, drift; and buttons that ask before they do anything.",
    options=(text("target", "where to look; everywhere if left out", backend="target"),),
    examples=("%dashboard", "board = %dashboard --target kubernetes"),
)

VERBS: dict[str, Verb] = {
    v.name: v
    for v in (
        *(EXPORT, LOG_MODEL, BUILD, DEPLOY, PREDICT, DEPLOYMENTS, ATTACH, LOGS, METRICS),
        *(ROLLBACK, PROMOTE, SCALE, UNDEPLOY, CLEANUP, DRIFT, DASHBOARD),
    )
}

SETTINGS_VERB = "mlopsnb"
SETTINGS_WORDS = ("doctor", "set", "settings")
SETTINGS_HELP = """Show or change mlopsnb itself.

usage:
  %mlopsnb                     version, settings, and what is installed
  %mlopsnb doctor              what works here, and how to mend what does not
  %mlopsnb settings            the settings as they are now
  %mlopsnb set KEY=VALUE …     change settings until the kernel ends; KEY= forgets one
"""

URI_SCHEMES = ("models:/", "runs:/")
"""How an address begins that is passed on as text."""

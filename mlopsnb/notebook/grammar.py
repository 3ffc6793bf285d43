"""The magics as data: which there are, what they take, and which Python function each one calls.

Parser, help, completion and the test against the functions' signatures all read this table; it does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal[
    "object", "source", "deployment", "text", "int", "float", "numbers", "texts", "words", "flag", "off"
]
"""How an argument is read.

`object` is a Python expression; `source` is one too, or a `models:/…` or `runs:/…` address; `deployment` is a variable
that holds a deployment, or a name; `numbers` and `texts` are KEY=VALUE, repeatable, or a variable that holds a mapping;
`words` are repeatable texts; `flag` makes its parameter true, and `off` is typed as `--no-NAME` and makes it false.
"""

BackEnd = Literal["builder", "format", "target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One positional argument or option. `name` is the parameter of the Python function."""

    name: str
    kind: Kind
    help: str
    backend: BackEnd | None = None
    """The kind of back end whose names are offered as values."""

    choices: tuple[str, ...] = ()
    """Values that are offered beside those of the back end; the function says what it takes."""

    required: bool = False

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return ("--no-" if self.kind == "off" else "--") + self.name.replace("_", "-")

    @property
    def takes_value(self) -> bool:
        """Say whether a value follows the option."""
        return self.kind not in ("flag", "off")

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        if self.kind in ("numbers", "texts"):
            return "KEY=VALUE"
        return self.name.upper()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One line magic. `twin` is `module:function`, or `module:Class.method` of the deployment that comes first."""

    name: str
    twin: str
    summary: str
    positionals: tuple[Argument, ...] = ()
    options: tuple[Argument, ...] = ()
    examples: tuple[str, ...] = ()
    alone: Verb | None = None
    """The verb of the same name that is meant where only one word is given."""

    @property
    def on_deployment(self) -> bool:
        """Say whether the verb is a method of the deployment that its first argument names."""
        return "." in self.twin.partition(":")[2]

    def option(self, flag: str) -> Argument | None:
        """Return the option typed as *flag*, or None."""
        return next((o for o in self.options if o.flag == flag), None)


LOADS = ("engine", "kind", "minikube", "k3d")

_MODEL = Argument(name="model", kind="object", help="the model: a variable or an expression")
_WHAT = Argument(
    name="what", kind="source", help="a model, artifact, model version, models:/… or runs:/… address"
)
_DEPLOYMENT = Argument(
    name="deployment", kind="deployment", help="a deployment's name, or a variable that holds one"
)
_EXAMPLE = Argument(
    name="example",
    kind="object",
    help="a few rows the model takes: array, tensor, DataFrame, dict or tuple of them",
)
_REFERENCE = Argument(
    name="reference", kind="object", help="training data that later traffic is compared with"
)
_METRICS = Argument(name="metrics", kind="numbers", help="metrics to log; repeatable, or a dict variable")
_FORMAT = Argument(
    name="format", kind="text", help="format of the export; chosen by the model if left out", backend="format"
)
_TARGET = Argument(
    name="target", kind="text", help="where it runs; the setting `target` if left out", backend="target"
)

EXPORT = Verb(
    name="export",
    twin="mlopsnb.packages:export",
    summary="Export a model and prove that the export answers as the original does.",
    positionals=(_MODEL,),
    options=(
        _EXAMPLE,
        _FORMAT,
        Argument(name="into", kind="text", help="directory to write to; the cache if left out"),
        Argument(name="tolerance", kind="float", help="largest error allowed; by dtype if left out"),
    ),
    examples=("%export model --example X_test[:5]", "artifact = %export model --example (ids, mask)"),
)

LOG_MODEL = Verb(
    name="log_model",
    twin="mlopsnb.flow:log",
    summary="Log an exported model to MLflow as the next version of a registered model.",
    positionals=(Argument(name="artifact", kind="object", help="what %export returned"),),
    options=(
        Argument(name="name", kind="text", help="name of the registered model", required=True),
        _REFERENCE,
        _METRICS,
        Argument(name="params", kind="texts", help="parameters to log; repeatable, or a dict variable"),
        Argument(name="tags", kind="texts", help="tags to set; repeatable, or a dict variable"),
        Argument(name="alias", kind="text", help="alias to give the version, such as champion"),
    ),
    examples=("version = %log_model artifact --name fraud --metrics accuracy={acc} --alias champion",),
)

_WORKLOAD = (
    Argument(name="replicas", kind="int", help="containers that share the traffic; 1 if left out"),
    Argument(name="min_replicas", kind="int", help="fewest, where the target scales by itself"),
    Argument(name="max_replicas", kind="int", help="most, where the target scales by itself"),
    Argument(name="cpu", kind="text", help="cores for each, such as 2 or 500m"),
    Argument(name="memory", kind="text", help="memory for each, such as 512Mi"),
    Argument(name="gpu", kind="int", help="GPUs for each"),
    Argument(name="secrets", kind="words", help="name of a Secret whose keys become variables; repeatable"),
    Argument(
        name="config_maps", kind="words", help="name of a ConfigMap whose keys become variables; repeatable"
    ),
    Argument(
        name="node_selector",
        kind="texts",
        help="label of the nodes to run on; repeatable, or a dict variable",
    ),
    Argument(
        name="tolerations",
        kind="words",
        help="taint to put up with, such as dedicated=ml:NoSchedule; repeatable",
    ),
    Argument(
        name="expose",
        kind="text",
        help="how clients outside reach it; not at all if left out",
        choices=("cluster", "nodeport", "loadbalancer", "ingress", "gateway"),
    ),
    Argument(name="host", kind="text", help="its name in an ingress or a gateway"),
    Argument(name="network_policy", kind="flag", help="let in only what the cluster's policies allow"),
    Argument(name="platform", kind="text", help="kserve: by KServe", choices=("kubernetes", "kserve")),
    Argument(name="ttl", kind="text", help="how long it may stay, such as 7d, until a clean-up removes it"),
)
"""What a deployment may use and how it is reached; each target says which of these it knows."""

DEPLOY = Verb(
    name="deploy",
    twin="mlopsnb.flow:deploy",
    summary="Serve a model. Steps that are missing (export, proof, log) are done first.",
    positionals=(replace(_WHAT, help=_WHAT.help.replace("version,", "version, image,")),),
    options=(
        Argument(
            name="name",
            kind="text",
            help="name of the deployment; by the variable's or the model's if left out",
        ),
        _EXAMPLE,
        _REFERENCE,
        _METRICS,
        _FORMAT,
        _TARGET,
        Argument(name="port", kind="int", help="port to serve on; a free one if left out"),
        Argument(
            name="grpc_port",
            kind="int",
            help="serve gRPC too, on this port; 0 for a free one, kept later; off if left out",
        ),
        Argument(
            name="env",
            kind="texts",
            help="environment variable of the server; repeatable, or a dict variable",
        ),
        Argument(name="workers", kind="int", help="server processes that share the port; 1 if left out"),
        Argument(
            name="cache_bytes",
            kind="int",
            help="memory to keep answers in for rows that come again; off if left out",
        ),
        Argument(
            name="capture",
            kind="float",
            help="share of the requests whose rows are written to files, for labels to come; none if left out",
        ),
        Argument(
            name="fallback",
            kind="source",
            help="a smaller model of the same signature, which answers while this one cannot",
        ),
        *_WORKLOAD,
        Argument(
            name="strategy",
            kind="text",
            help="how it takes over; rolling if left out",
            choices=("rolling", "blue-green", "canary", "ab", "shadow"),
        ),
        Argument(
            name="match", kind="text", help="the requests for the new one of an ab, such as header:X-Group=b"
        ),
        Argument(
            name="canary",
            kind="text",
            help="its shares of the traffic in percent, such as 10,50; a single one stays until %promote or %rollback",
        ),
        Argument(
            name="gate",
            kind="text",
            help='what it has to keep under traffic, such as "error_rate<0.01 and p99_ms<200"',
        ),
        Argument(name="pause", kind="text", help="how long each gate or share takes; 30s if left out"),
        Argument(name="force", kind="flag", help="deploy also what runs already in just this way"),
        Argument(
            name="wait",
            kind="off",
            help="go on in the background once the model is logged; the card tells how",
        ),
        Argument(name="timeout", kind="float", help="seconds to wait until it is ready"),
        Argument(name="dry_run", kind="flag", help="show what would be done, and do nothing"),
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
        Argument(
            name="name", kind="text", help="name of the image; by the variable's or the model's if left out"
        ),
        _EXAMPLE,
        _FORMAT,
        Argument(
            name="builder",
            kind="text",
            help="how it is built; without an engine if left out",
            backend="builder",
            choices=("auto",),
        ),
        Argument(
            name="base", kind="text", help="image to stand on; python:3.X-slim of this kernel if left out"
        ),
        Argument(name="registry", kind="text", help="where to push it, such as ghcr.io/team"),
        Argument(name="push", kind="flag", help="push it to the registry, or fail"),
        Argument(name="load", kind="text", help="load it into an engine or a local cluster", choices=LOADS),
        Argument(name="output", kind="text", help="write an OCI layout: a directory, or a .tar"),
        Argument(
            name="export",
            kind="text",
            help="write a Dockerfile and what it needs to this directory, build nothing",
        ),
        Argument(
            name="platform",
            kind="text",
            help="platform it runs on, such as linux/arm64; this machine's if left out",
        ),
        Argument(
            name="accelerator", kind="text", help="cpu or cuda; cpu if left out", choices=("cpu", "cuda")
        ),
        Argument(
            name="requirements",
            kind="words",
            help="a package the model needs besides, as pip takes it; repeatable",
        ),
        Argument(
            name="code_paths", kind="words", help="a local module or package the model needs; repeatable"
        ),
        Argument(name="max_size", kind="text", help="fail if it is larger when compressed, such as 900MB"),
        Argument(
            name="separate_weights",
            kind="flag",
            help="keep the model's largest file in an image of its own",
        ),
        Argument(
            name="scan",
            kind="text",
            help="fail at a known vulnerability of this severity or graver; needs trivy or grype",
            choices=("low", "medium", "high", "critical"),
        ),
        Argument(name="sign", kind="text", help="file of the private key to sign the image with"),
        Argument(
            name="apt", kind="words", help="a Debian package to install first, by an engine; repeatable"
        ),
        Argument(
            name="steps", kind="words", help="an instruction of a Dockerfile to carry out first; repeatable"
        ),
    ),
    examples=(
        "image = %build model --registry ghcr.io/team",
        "%build models:/fraud/3 --load engine",
        "%build artifact --name fraud --output fraud.tar --max-size 900MB",
    ),
)

PREDICT = Verb(
    name="predict",
    twin="mlopsnb.deployment:Deployment.predict",
    summary="Ask a deployment for predictions.",
    positionals=(
        _DEPLOYMENT,
        Argument(name="x", kind="object", help="rows to predict on: a variable or an expression"),
    ),
    options=(_TARGET,),
    examples=("%predict fraud X_test[:3]", "y = %predict dep X_live"),
)

DEPLOYMENTS = Verb(
    name="deployments",
    twin="mlopsnb.deployment:deployments",
    summary="List what is deployed.",
    options=(_TARGET,),
    examples=("%deployments",),
)

ATTACH = Verb(
    name="attach",
    twin="mlopsnb.deployment:get",
    summary="Get hold of a deployment that runs already, and show its rollout if that goes on in the background.",
    positionals=(Argument(name="name", kind="deployment", help="the deployment's name"),),
    options=(_TARGET,),
    examples=("dep = %attach fraud",),
)

LOGS = Verb(
    name="logs",
    twin="mlopsnb.deployment:Deployment.logs",
    summary="Show the log of a deployment.",
    positionals=(_DEPLOYMENT,),
    options=(
        Argument(name="tail", kind="int", help="only the last lines"),
        Argument(name="revision", kind="int", help="the revision to read; the one that serves if left out"),
        _TARGET,
    ),
    examples=("%logs fraud --tail 50",),
)

METRICS = Verb(
    name="metrics",
    twin="mlopsnb.deployment:Deployment.metrics",
    summary="Show what is sent to a deployment and how it answers, per revision: rates, errors, quantiles, queue, memory.",
    positionals=(_DEPLOYMENT,),
    options=(
        Argument(
            name="seconds", kind="text", help="how long to watch, such as 60 or 5m; a second if left out"
        ),
        _TARGET,
    ),
    examples=("%metrics fraud", "traffic = %metrics fraud --seconds 2m"),
)

ROLLBACK = Verb(
    name="rollback",
    twin="mlopsnb.deployment:Deployment.rollback",
    summary="Serve an earlier model again: the previous one, or the stable one beside a canary.",
    positionals=(_DEPLOYMENT,),
    options=(
        Argument(name="to", kind="int", help="the revision to go back to; the one before if left out"),
        _TARGET,
    ),
    examples=("%rollback fraud", "%rollback fraud --to 3"),
)

PROMOTE = Verb(
    name="promote",
    twin="mlopsnb.deployment:Deployment.promote",
    summary="Give the canary of a deployment all traffic.",
    positionals=(_DEPLOYMENT,),
    options=(_TARGET,),
    examples=("%promote fraud",),
)

SCALE = Verb(
    name="scale",
    twin="mlopsnb.deployment:Deployment.scale",
    summary="Serve a deployment with so many replicas.",
    positionals=(_DEPLOYMENT, Argument(name="n", kind="int", help="how many replicas")),
    options=(_TARGET,),
    examples=("%scale fraud 3",),
)

UNDEPLOY = Verb(
    name="undeploy",
    twin="mlopsnb.deployment:Deployment.delete",
    summary="Stop a deployment and remove it with its history.",
    positionals=(_DEPLOYMENT,),
    options=(_TARGET,),
    examples=("%undeploy fraud",),
)

CLEANUP = Verb(
    name="cleanup",
    twin="mlopsnb.cleaning:cleanup",
    summary="Remove deployments that are past their time, and what builds left in the cache.",
    options=(
        Argument(name="images", kind="flag", help="layers and environments of past builds, in the cache"),
        Argument(name="deployments", kind="flag", help="deployments whose TTL has passed"),
        Argument(name="older_than", kind="text", help="deployments last deployed longer ago, such as 7d"),
        Argument(name="owner", kind="text", help="whose deployments; yours if left out, * for all"),
        Argument(
            name="target", kind="text", help="where to look; on every target if left out", backend="target"
        ),
        Argument(name="dry_run", kind="flag", help="show what would be removed, and remove nothing"),
    ),
    examples=("%cleanup --older-than 7d --dry-run", "%cleanup --deployments --images"),
)

_THRESHOLDS = (
    Argument(name="threshold", kind="float", help="smallest effect that counts as drift"),
    Argument(name="q", kind="float", help="false discovery rate over all features"),
)

LIVE_DRIFT = Verb(
    name="drift",
    twin="mlopsnb.deployment:Deployment.drift",
    summary="Compare what a deployment was asked with the reference that its model was logged with.",
    positionals=(_DEPLOYMENT,),
    options=(
        Argument(name="since", kind="text", help="look so far back, such as 30m or 6h; a day if left out"),
        Argument(
            name="revision", kind="int", help="the revision to look at; the one that serves if left out"
        ),
        *_THRESHOLDS,
        _TARGET,
    ),
    examples=("%drift fraud", "report = %drift fraud --since 6h"),
)

DRIFT = Verb(
    name="drift",
    twin="mlopsnb.monitoring:drift",
    summary="Compare two data sets, or a deployment's traffic with its reference, and say which features drifted.",
    positionals=(
        Argument(name="reference", kind="object", help="the data to compare with, such as the training data"),
        Argument(name="current", kind="object", help="the data of today"),
    ),
    options=(
        Argument(name="method", kind="text", help="the statistic; by each column's type if left out"),
        *_THRESHOLDS,
        Argument(
            name="outputs",
            kind="object",
            help="the model's answers on both: (on the reference, on the current data)",
        ),
    ),
    examples=("%drift X_train X_live", "report = %drift train live --threshold 0.2"),
    alone=LIVE_DRIFT,
)

DASHBOARD = Verb(
    name="dashboard",
    twin="mlopsnb.notebook.dashboard:dashboard",
    summary="Show all deployments live: states, versions, traffic, drift; and buttons that ask before they do anything.",
    options=(
        Argument(name="target", kind="text", help="where to look; everywhere if left out", backend="target"),
    ),
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

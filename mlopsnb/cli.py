"""`python -m mlopsnb`: the magics that need no Python objects, for a terminal, CI and a cluster's jobs.

The verbs are those of the magics' grammar. Nothing typed here is evaluated: a model is a `models:/…` or `runs:/…`
address, rows are JSON. Results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from mlopsnb.background import Detached
from mlopsnb.errors import MlopsnbError, UserError
from mlopsnb.notebook.arguments import JSON, Argument, Verb
from mlopsnb.notebook.documents import document
from mlopsnb.notebook.grammar import ATTACH, EXPORT, LOG_MODEL, VERBS

OFFERED: dict[str, Verb] = {
    name: verb.alone or verb for name, verb in VERBS.items() if verb not in (ATTACH, EXPORT, LOG_MODEL)
}
"""Verbs whose first argument can be written down; the others take a model or data."""

_FAILED, _WRONG_CALL, _FIRING, _INTERRUPTED = 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status: 0, 1 if it failed, 2 for a wrong call, 3 if an alert fires, 130 after Ctrl-C."""
    words = _parser().parse_args(arguments)
    try:
        return int(words.run(words))
    except MlopsnbError as exc:
        sys.stderr.write(f"{type(exc).__name__}: {exc}\n")
        sys.stderr.writelines(f"  note: {note}\n" for note in getattr(exc, "__notes__", ()))
        return _WRONG_CALL if isinstance(exc, UserError) else _FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlopsnb", description="Deploy, operate and watch models.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in OFFERED.values():
        _add(verbs, verb)
    _add_watch(verbs)
    return parser


def _add(verbs: Any, verb: Verb) -> None:
    summary = verb.summary.replace("%", "%%")
    one = verbs.add_parser(
        verb.name,
        help=summary,
        description=summary,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for argument in verb.positionals:
        one.add_argument(argument.name, metavar=argument.metavar, type=_type(argument), help=_help(argument))
    for option in (*verb.options, *((JSON,) if verb.reads else ())):
        if option.kind == "off":
            continue  # in the background of a process that ends
        if option.kind == "flag":
            one.add_argument(option.flag, dest=option.name, action="store_true", help=_help(option))
        elif option.kind != "object":
            action = "append" if option.repeats else "store"
            one.add_argument(
                option.flag,
                dest=option.name,
                metavar=option.metavar,
                type=_type(option),
                action=action,
                required=option.required,
                help=_help(option),
            )
    one.set_defaults(run=lambda words: _run(verb, words))


def _help(argument: Argument) -> str:
    told = f"{argument.help}; JSON" if argument.kind == "object" else argument.help
    return told.replace("%", "%%")


def _type(argument: Argument) -> Any:
    match argument.kind:
        case "int":
            return int
        case "float":
            return float
        case "object":
            return _json
        case "numbers" | "texts":
            return _number if argument.kind == "numbers" else _pair
        case _:
            return str


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"is not JSON: {exc}") from exc


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"takes KEY=VALUE, found {text!r}")
    return key, value


def _number(text: str) -> tuple[str, float]:
    key, value = _pair(text)
    try:
        return key, float(value)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{key} must be a number, found {value!r}") from exc


def _run(verb: Verb, words: argparse.Namespace) -> int:
    values = {k: v for k, v in vars(words).items() if k != "run"}
    as_json = values.pop(JSON.name, False)
    for argument in (*verb.positionals, *verb.options):
        if argument.name in values and argument.kind in ("numbers", "texts"):
            values[argument.name] = dict(values[argument.name])
    first = [values.pop(a.name) for a in verb.positionals]
    title = " ".join([verb.name, *map(str, first[:1])])
    if verb.on_deployment:
        handle = _deployment(first.pop(0), values.pop("target", None))
        result = _followed(title, getattr(handle, verb.twin.rpartition(".")[2]), first, values)
    else:
        module, _, function = verb.twin.partition(":")
        result = _followed(title, getattr(import_module(module), function), first, values)
    text = document(result) if as_json else _text(verb, result, dry_run="dry_run" in values)
    if text:
        sys.stdout.write(f"{text}\n")
    return 0


def _followed(title: str, function: Any, first: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """Call *function* with its progress as lines on standard error."""
    from mlopsnb.notebook.views import following

    with redirect_stdout(sys.stderr), following(title, mode="lines"):
        try:
            return function(*first, **options)
        except Detached as exc:
            sys.stderr.write(f"{exc}; one more interrupt leaves it unfinished\n")
            exc.rollout.join()  # its thread would end with this process
            raise


def _deployment(name: str, target: str | None) -> Any:
    return import_module("mlopsnb.deployment").get(name, target=target)


_SHOWN = {
    "Deployment": "displays.deployment_text",
    "Deployments": "displays.deployments_text",
    "Cleanup": "image_displays.cleanup_text",
    "Image": "image_displays.image_text",
}


def _text(verb: Verb, result: Any, *, dry_run: bool) -> str:
    """Return what is written of a *result*: a prediction as JSON, a record as its text."""
    if verb.name == "predict":
        return document(result)
    place = "displays.Plan" if dry_run and type(result) is tuple else _SHOWN.get(type(result).__name__)
    if place is not None:
        module, _, function = place.partition(".")
        result = getattr(import_module(f"mlopsnb.notebook.{module}"), function)(result)
    return "" if result is None else str(result)


def _add_watch(verbs: Any) -> None:
    one = verbs.add_parser(
        "watch",
        help="Watch a deployment and tell when an alert fires and when it is over.",
        description="Watch a deployment's traffic, drift and performance until it is interrupted; as a job with --once, "
        "which ends with status 3 if an alert fires.",
        allow_abbrev=False,
    )
    one.add_argument("deployment", metavar="DEPLOYMENT", help="a deployment's name")
    one.add_argument(
        "--alert",
        dest="alerts",
        metavar="ALERT",
        action="append",
        required=True,
        help="such as 'severe: error_rate>0.05 for 5m'; repeatable",
    )
    one.add_argument(
        "--webhook", action="append", default=[], metavar="URL", help="post notices as JSON; repeatable"
    )
    one.add_argument(
        "--slack", action="append", default=[], metavar="URL", help="post notices to Slack; repeatable"
    )
    one.add_argument(
        "--labels", metavar="PATH", help="labels of captured rows, Parquet or CSV: request_id, row, label"
    )
    one.add_argument(
        "--reference",
        metavar="PATH",
        help="rows with labels that performance is compared with, Parquet or CSV: labels, and scores (one for each class "
        "as scores.CLASS), predictions, or both",
    )
    one.add_argument(
        "--retrain",
        metavar="COMMAND",
        type=shlex.split,
        help="started once for each incident, with the notice in MLOPSNB_NOTICE, such as 'papermill train.ipynb out.ipynb'",
    )
    one.add_argument("--every", default="30s", metavar="SPAN", help="how often it looks; 30s if left out")
    one.add_argument(
        "--once",
        action="store_true",
        help="look at one such span, and end; it stands for how long an alert must hold",
    )
    one.add_argument("--target", metavar="TARGET", help="where it runs")
    one.set_defaults(run=_watch)


def _watch(words: argparse.Namespace) -> int:
    from mlopsnb.monitoring import alerts, captured, retraining, sinks
    from mlopsnb.watching import watch

    if words.once and words.retrain:
        raise UserError(
            "--retrain needs a watch that goes on: with --once each run would begin a new incident",
            hint="leave --once out, or have your scheduler act on status 3",
        )
    if words.labels and not words.reference:
        raise UserError(
            "--labels needs --reference, which performance is compared with", hint="--reference known.parquet"
        )
    rules = [alerts.parse(text) for text in words.alerts]
    if words.once:
        rules = [replace(alert, seconds=0.0) for alert in rules]
    told = [_say, *map(sinks.webhook, words.webhook), *map(sinks.slack, words.slack)]
    told += [retraining.retrain(words.retrain)] if words.retrain else []
    dep = _deployment(words.deployment, words.target)
    performance = None
    if words.reference:
        known = captured.read_reference(words.reference)
        performance = partial(dep.performance, words.labels, reference=known)
    watcher = watch(dep, rules, sinks=told, every=words.every, performance=performance, start=False)
    watcher.run(1 if words.once else None)
    sys.stderr.writelines(f"{trouble}\n" for trouble in watcher.troubles)
    return _FIRING if watcher.firing else 0


def _say(notice: Any) -> None:
    sys.stdout.write(f"{notice.text}\n")
    sys.stdout.flush()


def entry() -> NoReturn:
    """Run and end with its status."""
    raise SystemExit(main())

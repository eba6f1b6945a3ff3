"""The command line of `kubectl shift`."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version

from shiftprotos import contract

from shiftoperator.kubectl import drain, explain, pages, policy, rotate
from shiftoperator.kubectl import output as out
from shiftoperator.kubectl.client import RESOURCE, Kubectl, KubectlError
from shiftoperator.kubectl.errors import FAILED, RefusedError
from shiftoperator.kubectl.help import HELP, TOP
from shiftoperator.kubectl.resource import Deployment, Object, read

WATCH_SECONDS = 2.0
_NAME = re.compile(r"([a-z][a-z.]*/)?(?P<name>[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if getattr(options, "all_namespaces", False) and options.name:
        parser().error(f"-A and the name {options.name} exclude each other; name its namespace with -n")
    try:
        code: int = options.run(_kubectl(options), options)
    except KubectlError as error:
        if str(error):
            out.note(f"kubectl shift: {error}")
        return FAILED
    except RefusedError as error:
        out.note(f"kubectl shift: {error}")
        return FAILED
    except KeyboardInterrupt:
        return 130
    return code


def _kubectl(options: argparse.Namespace) -> Kubectl:
    named = ("context", "kubeconfig", "cluster", "user", "namespace")
    given = [f"--{name}={getattr(options, name)}" for name in named if getattr(options, name) is not None]
    return Kubectl((*given, *([f"--as={options.as_user}"] if options.as_user else [])))


# --- verbs ---


def _status(kubectl: Kubectl, options: argparse.Namespace) -> int:
    if options.name:
        told = explain.status(read(kubectl.get(options.name)))
        out.show_json(told) if options.output else out.show(*pages.page(told))
        return 0
    found = [explain.status(deployment) for deployment in _all(kubectl, options)]
    if options.output:
        out.show_json({"items": found})
    elif found:
        out.show(*pages.listing(found, options.all_namespaces))
    else:
        _none(options)
    return 0


def _why(kubectl: Kubectl, options: argparse.Namespace) -> int:
    told = explain.why(read(kubectl.get(options.name)), options.condition)
    out.show_json(told) if options.output else out.show(*pages.why(told, options.condition))
    return 0


def _policy(kubectl: Kubectl, options: argparse.Namespace) -> int:
    wanted = policy.wanted(options.mode, options.threshold, options.no_threshold)
    if wanted:
        return policy.change(kubectl, options.name, wanted, options.wait, as_json=bool(options.output))
    found = read(kubectl.get(options.name))
    out.show_json(policy.told(found)) if options.output else policy.display(found)
    return 0


def _top(kubectl: Kubectl, options: argparse.Namespace) -> int:
    shown = None
    while True:
        if options.name:
            found = [explain.top(read(kubectl.get(options.name)))]
        else:
            found = [explain.top(deployment) for deployment in _all(kubectl, options)]
        if found != shown or sys.stdout.isatty():
            _show_top(found, options)
        if not options.watch:
            return 0
        shown = found
        time.sleep(WATCH_SECONDS)


def _show_top(found: list[Object], options: argparse.Namespace) -> None:
    if options.output:
        out.show_json({"items": found}, one_line=options.watch)
    elif not found:
        _none(options)
    else:
        if options.watch:
            out.clear()
        out.show(*pages.top(found, options.all_namespaces))


def _drain(kubectl: Kubectl, options: argparse.Namespace) -> int:
    asked = drain.Asked(options.yes, options.wait, options.force, bool(options.output))
    return drain.drain(kubectl, options.name, asked)


def _rotate(kubectl: Kubectl, options: argparse.Namespace) -> int:
    return rotate.rotate(kubectl, options.name)


def _all(kubectl: Kubectl, options: argparse.Namespace) -> list[Deployment]:
    everywhere = ("--all-namespaces",) if options.all_namespaces else ()
    found = [read(resource) for resource in kubectl.list(RESOURCE, *everywhere)]
    return sorted(found, key=lambda deployment: (deployment.namespace, deployment.name))


def _none(options: argparse.Namespace) -> None:
    where = "in any namespace" if options.all_namespaces else f"in namespace {options.namespace or 'of the context'}"
    out.note(f"No {contract.KIND} found {where}.")


# --- options ---


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("kubectl shift", None, TOP.description, TOP.epilog, formatter_class=formatter)
    made.add_argument("--version", action="version", version=f"kubectl-shift {version('shift-operator')}")
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, add in _VERBS.items():
        verb = verbs.add_parser(
            name,
            help=HELP[name].summary,
            description=HELP[name].description,
            epilog=HELP[name].epilog,
            formatter_class=formatter,
        )
        add(verb)
        _add_common(verb)
    return made


def _add_common(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("cluster, as for kubectl")
    group.add_argument("-n", "--namespace", help="namespace [that of the context]")
    group.add_argument("--context", help="context of the kubeconfig")
    group.add_argument("--kubeconfig", help="path of the kubeconfig")
    group.add_argument("--cluster", help="cluster of the kubeconfig")
    group.add_argument("--user", help="user of the kubeconfig")
    group.add_argument("--as", dest="as_user", metavar="USER", help="user to act as")


def _add_status(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", nargs="?", type=_name, metavar="NAME", help="a ShiftDeployment; all when left out")
    _add_everywhere(verb)
    _add_json(verb)
    verb.set_defaults(run=_status)


def _add_why(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=_name, metavar="NAME", help="a ShiftDeployment")
    types = ", ".join(contract.CONDITIONS)
    verb.add_argument("--condition", type=_condition_type, metavar="TYPE", help=f"only this one, good or bad: {types}")
    _add_json(verb)
    verb.set_defaults(run=_why)


def _add_policy(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=_name, metavar="NAME", help="a ShiftDeployment")
    verb.add_argument("mode", nargs="?", type=str.lower, choices=policy.MODES, help="the policy from now on")
    threshold = verb.add_mutually_exclusive_group()
    threshold.add_argument("--threshold", type=int, metavar="TOKENS", help="steps with at most so many run the tp gear")
    threshold.add_argument("--no-threshold", action="store_true", help="the crossover that each pod measured holds")
    said = f"how long to wait for the pods [{policy.WAIT_SECONDS:g}]; 0: not at all"
    verb.add_argument("--wait", type=_seconds, default=policy.WAIT_SECONDS, metavar="SECONDS", help=said)
    _add_json(verb)
    verb.set_defaults(run=_policy)


def _add_top(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", nargs="?", type=_name, metavar="NAME", help="a ShiftDeployment; all when left out")
    verb.add_argument("-w", "--watch", action="store_true", help="go on until interrupted")
    _add_everywhere(verb)
    _add_json(verb)
    verb.set_defaults(run=_top)


def _add_drain(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=_name, metavar="POD", help="a pod of a ShiftDeployment")
    verb.add_argument("-y", "--yes", action="store_true", help="do not ask")
    said = f"how long to wait for its end and its successor [its grace period + {drain.START_SECONDS:g}]; 0: not at all"
    verb.add_argument("--wait", type=_seconds, metavar="SECONDS", help=said)
    verb.add_argument("--force", action="store_true", help="also against a PodDisruptionBudget")
    _add_json(verb)
    verb.set_defaults(run=_drain)


def _add_rotate(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=_name, metavar="NAME", help="a ShiftDeployment")
    verb.set_defaults(run=_rotate)


def _add_everywhere(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-o", "--output", choices=["json"], help="for programs; the fields are below")


def _name(given: str) -> str:
    """Also as kubectl prints it, with its kind before it. Never an option of kubectl."""
    found = _NAME.fullmatch(given)
    if found is None:
        raise argparse.ArgumentTypeError(f"{given!r} is no name of an object")
    return found["name"]


def _condition_type(given: str) -> str:
    found = next((type_ for type_ in contract.CONDITIONS if type_.lower() == given.lower()), None)
    if found is None:
        raise argparse.ArgumentTypeError(f"{given!r} is no condition; use {', '.join(contract.CONDITIONS)}")
    return found


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{given!r}: use 0..86400 seconds")
    return seconds


_VERBS = {
    "status": _add_status,
    "why": _add_why,
    "policy": _add_policy,
    "top": _add_top,
    "drain": _add_drain,
    "rotate": _add_rotate,
}

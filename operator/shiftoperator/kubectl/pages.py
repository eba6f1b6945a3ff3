"""What the verbs show a person, made of what explain tells."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text
from shiftprotos import contract

from shiftoperator.kubectl import explain
from shiftoperator.kubectl.health import Health
from shiftoperator.kubectl.output import LOAD_STYLES, STYLES, age, count, heading, paragraph, section, size, table, text
from shiftoperator.kubectl.resource import Object

_LIST = ("NAME", "READY", "PODS", "POLICY", "SYNC", "GEARS", "LOAD", "SLO", "REASON")


def listing(told: list[Object], namespaces: bool) -> list[RenderableType]:
    """One line each."""
    columns = ("NAMESPACE", *_LIST) if namespaces else _LIST
    return [table(columns, [_line(one, namespaces) for one in told])]


def _line(told: Object, namespaces: bool) -> list[object]:
    found = {condition["type"]: condition for condition in told["conditions"]}
    ready, asked = found.get(contract.CONDITION_READY), told["replicas"]["asked"]
    cells: list[object] = [
        told["name"],
        _status(ready),
        f"{told['replicas']['ready']}/{asked}",
        _policy(told["policy"]["asked"]),
        _status(found.get(contract.CONDITION_POLICY_IN_SYNC)),
        told["gear"],
        text(told["load"], LOAD_STYLES.get(told["load"] or "", "")),
        _status(found.get(contract.CONDITION_SLO_MET)),
        text(ready["reason"] if ready else "not seen by an operator yet"),
    ]
    return [told["namespace"], *cells] if namespaces else cells


def _status(condition: Object | None) -> Text:
    if condition is None:
        return text("-", "dim")
    return text(condition["status"], STYLES[Health(condition["health"])])


def _policy(policy: Object) -> str:
    threshold = policy["thresholdTokens"]
    return str(policy["mode"] or "-") + ("" if threshold is None else f" ≤{threshold}")


# --- one resource ---


def page(told: Object) -> list[RenderableType]:
    return [
        heading(f"{told['namespace']}/{told['name']}"),
        table(("", ""), _facts(told), indent=2),
        *_behind(told),
        section("Conditions"),
        table(("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), map(_condition, told["conditions"]), indent=2),
        *pods(told["pods"], told["policy"]["generation"]),
        *_capacity(told),
        *_start(told["slowestStart"]),
        *_failure(told["lastFailure"]),
    ]


def _facts(told: Object) -> list[tuple[str, object]]:
    replicas, policy = told["replicas"], told["policy"]
    asked, gpus = count(replicas["asked"], "pod"), count(told["gpusPerPod"], "GPU")
    size_said = f"{replicas['ready']} of {asked} ready, {gpus} each"
    synced = "applied by every ready pod" if policy["inSync"] else "not yet applied by every ready pod"
    if not replicas["ready"]:
        synced = "no ready pod to apply it"
    scheduled = explain.schedule_words(policy["schedule"])
    return [
        ("model", told["model"] or "-"),
        ("pods", size_said + (" (suspended)" if told["suspended"] else "")),
        ("policy", f"{_policy(policy['asked'])}, generation {policy['generation']}, {synced}"),
        *([("schedule", scheduled)] if scheduled else []),
        ("gears", f"{told['gear'] or '-'} (steps since the pods started)"),
        ("slo", _slo(told)),
    ]


def _slo(told: Object) -> str:
    slo: Object = told["slo"] or {}
    targets = [f"{name} {slo[field]} ms" for name, field in (("TTFT", "ttftMs"), ("TPOT", "tpotMs")) if field in slo]
    if not targets:
        return "no target"
    met = next((c for c in told["conditions"] if c["type"] == contract.CONDITION_SLO_MET), None)
    said = {"True": "met", "False": "missed"}.get(met["status"] if met else "", "not known")
    return f"{', '.join(targets)} at the {slo.get('percentile', 95)}th percentile: {said}"


def _behind(told: Object) -> list[RenderableType]:
    if told["observedGeneration"] >= told["generation"]:
        return []
    said = f"This status is of generation {told['observedGeneration']}; the spec is {told['generation']} already."
    return [paragraph(said, indent=2, style="yellow")]


def _condition(condition: Object) -> list[object]:
    style = STYLES[Health(condition["health"])]
    status = text(condition["status"], style)
    return [condition["type"], status, condition["reason"], age(condition["since"]), condition["message"]]


def pods(listed: list[Object], generation: int) -> list[RenderableType]:
    if not listed:
        return [section("Pods"), paragraph("none", indent=2)]
    columns = ("POD", "READY", "LOAD", "GEARS", "POLICY", "THRESHOLD", "CROSSOVER")
    return [section("Pods"), table(columns, [pod_cells(pod, generation) for pod in listed], indent=2)]


def pod_cells(pod: Object, generation: int) -> list[object]:
    """`generation`: that of the policy last set."""
    load = pod.get("load")
    applied = pod.get("policyGeneration")
    threshold = pod.get("thresholdTokens")
    source = f" ({pod['thresholdSource']})" if pod.get("thresholdSource") else ""
    return [
        pod["name"],
        "yes" if pod.get("ready") else "no",
        text(load, LOAD_STYLES.get(load, "")) if load else text(pod.get("phase") or "-", "yellow"),
        gears(pod),
        text("-" if applied is None else applied, "" if applied == generation else "yellow"),
        "-" if threshold is None else f"{threshold}{source}",
        pod.get("crossoverTokens") or pod.get("crossoverReason") or "-",
    ]


def gears(pod: Object) -> str:
    shares: Object = pod.get("gears") or {}
    return ", ".join(f"{gear} {share}%" for gear, share in sorted(shares.items())) or "-"


def _capacity(told: Object) -> list[RenderableType]:
    rows = [
        (c["gear"], f"{c.get('tokensPerSecond', 0):,} tokens/s", count(c.get("pods", 0), "pod"))
        for c in told["capacity"]
    ]
    parts: list[RenderableType] = [section("Capacity of all ready pods")]
    parts += [table(("", "", ""), rows, indent=2)] if rows else [paragraph("not measured yet", indent=2)]
    return [*parts, section("Crossover"), paragraph(_crossover(told["crossover"]), indent=2)]


def _crossover(crossover: Object | None) -> str:
    if not crossover:
        return "not measured yet"
    tokens = crossover.get("tokens")
    said = f"none ({crossover.get('reason') or 'no reason told'})"
    if tokens is not None:
        said = f"from {tokens} tokens in a step on the base gear is cheaper"
    named = [crossover[field] for field in ("model", "dtype", "device") if crossover.get(field)]
    by = f"by {crossover.get('pod') or 'a pod'}"
    since = f", started {age(crossover['podStartedAt'])} ago" if crossover.get("podStartedAt") else ""
    version = f", runtime {crossover['runtimeVersion']}" if crossover.get("runtimeVersion") else ""
    how = {"Calibration": "measured", "Default": "assumed, not measured,"}.get(crossover.get("source", ""), "told")
    return f"{said}; {how} {by}{since}{version}" + (f"; {', '.join(map(str, named))}" if named else "")


def _start(start: Object | None) -> list[RenderableType]:
    if not start:
        return []
    title = f"Slowest start: {start.get('pod', '-')}, {start.get('seconds', 0)} s"
    rows = [
        (phase["name"], f"{phase.get('seconds', 0)} s", size(phase["bytes"]) if phase.get("bytes") else "")
        for phase in start.get("phases") or ()
    ]
    return [section(title), *([table(("", "", ""), rows, indent=2)] if rows else [])]


def _failure(failure: Object | None) -> list[RenderableType]:
    if not failure:
        return []
    ago = f", {age(failure['time'])} ago" if age(failure.get("time")) else ""
    said = f"{failure.get('pod', '-')}: {failure.get('reason', '-')}, exit code {failure.get('exitCode', '-')}{ago}"
    return [section("Last failure"), paragraph(said, indent=2), paragraph(failure.get("message", ""), indent=2)]


# --- why ---


def why(told: Object, asked: str | None) -> list[RenderableType]:
    parts: list[RenderableType] = [heading(f"{told['namespace']}/{told['name']}"), *_behind(told)]
    for alike in _alike(told["conditions"]):
        parts += _reason(alike)
    if not told["conditions"]:
        parts += [paragraph(_nothing(asked), indent=2)]
    if asked in (None, contract.CONDITION_POLICY_IN_SYNC):
        parts += _schedule(told["policy"])
    if asked in (None, contract.CONDITION_SCALING_ACTIVE):
        parts += [*_scaling(told["scaling"]), *_decisions(told["decisions"], told["scaling"])]
    return parts


def _alike(conditions: list[Object]) -> list[list[Object]]:
    """Conditions that say the same are shown once."""
    found: dict[tuple[str, ...], list[Object]] = {}
    for condition in conditions:
        found.setdefault(tuple(condition[key] for key in ("status", "reason", "message")), []).append(condition)
    return list(found.values())


def _nothing(asked: str | None) -> str:
    return "every condition is as it should be" if asked is None else f"the status has no condition {asked}"


def _reason(alike: list[Object]) -> list[RenderableType]:
    condition, verb = alike[0], "is" if len(alike) == 1 else "are"
    title = section(f"{', '.join(c['type'] for c in alike)} {verb} {condition['status']}: {condition['reason']}")
    title.stylize(STYLES[Health(condition["health"])])
    rows: list[tuple[str, object]] = [("says", condition["message"])]
    if condition["meaning"] is None:
        rows += [("means", "this version does not know the reason; a later operator wrote it")]
    else:
        rows += [("means", condition["meaning"]), ("do", condition["cure"])]
    since = age(condition["since"])
    return [title, table(("", ""), [*rows, *([("for", since)] if since else [])], indent=2)]


def _schedule(policy: Object) -> list[RenderableType]:
    words = explain.schedule_words(policy["schedule"])
    if not words:
        return []
    return [section("Schedule"), paragraph(f"{words}; spec.shift asks for {_policy(policy['asked'])}", indent=2)]


def _scaling(told: Object) -> list[RenderableType]:
    rows = [("mode", told["mode"])]
    if told["reason"]:
        rows += [("now", f"{told['reason']}: {told['message']}")]
    rows += [(name, told[key]) for name, key in (("out", "toAdd"), ("in", "toRemove")) if told[key]]
    return [section("Autoscaler"), table(("", ""), rows, indent=2)]


def _decisions(listed: list[Object], scaling: Object) -> list[RenderableType]:
    if not listed:
        return [section("Decisions"), paragraph("none", indent=2)]
    parts: list[RenderableType] = [section("Decisions, the newest first")]
    for made in listed:
        verb = "scaled" if made.get("applied") else "would scale"
        ago = f", {age(made['time'])} ago" if age(made.get("time")) else ""
        change = f"{verb} from {made.get('from', '?')} to {made.get('to', '?')}: {made.get('reason', '-')}{ago}"
        rows = [("because", made["message"])] if made.get("message") else []
        rows += [("reverse", _shortened(made["opposite"], scaling))] if made["opposite"] else []
        parts += [paragraph(change, indent=2), *([table(("", ""), rows, indent=4)] if rows else [])]
    return parts


def _shortened(opposite: str, scaling: Object) -> str:
    """What stands under Autoscaler already is not repeated with every decision."""
    for name, key in (("out", "toAdd"), ("in", "toRemove")):
        if scaling[key]:
            opposite = opposite.replace(scaling[key], f"as for `{name}` above")
    return opposite


# --- top ---


def top(told: list[Object], namespaces: bool) -> list[RenderableType]:
    columns = ("NAME", "POD", "READY", "LOAD", "FOR", "GEARS", "POLICY")
    rows = []
    for one in told:
        for pod in one["pods"]:
            name, ready, load, shares, applied, *_ = pod_cells(pod, one["policyGeneration"])
            lasted = age(pod.get("loadSince")) or "-"
            row = [one["name"], name, ready, load, lasted, shares, applied]
            rows.append([one["namespace"], *row] if namespaces else row)
    return [
        table(("NAMESPACE", *columns) if namespaces else columns, rows),
        paragraph("Bands from the status, which fall 30 s late; continuous figures are metrics.", style="dim"),
    ]

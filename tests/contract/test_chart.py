"""The chart and the CRD say what protos/shiftprotos/contract.py says, and refuse what cannot work."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from helpers.chart import CHART, CRD_FILE, NAMESPACE, ROOT, helm, of_kind, operator_rules, rendered
from shiftcore.scaling import MetricsLoss
from shiftoperator import names
from shiftoperator import settings as operator_settings
from shiftoperator import spec as specs
from shiftoperator.manifests.overrides import RESERVED_ENVIRONMENT
from shiftoperator.spec.rollout import TIME
from shiftprotos import contract

EXAMPLE = ROOT / "examples" / "gemma-270m.yaml"

Object = dict[str, Any]


@pytest.fixture(scope="module")
def crd() -> Object:
    loaded: Object = yaml.safe_load(CRD_FILE.read_text())
    return loaded


@pytest.fixture(scope="module")
def schema(crd: Object) -> Object:
    found: Object = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    return found


# --- CRD ---


def test_names(crd: Object) -> None:
    spec = crd["spec"]
    assert crd["metadata"]["name"] == f"{contract.PLURAL}.{contract.API_GROUP}"
    assert (spec["group"], spec["names"]["kind"]) == (contract.API_GROUP, contract.KIND)
    assert (spec["names"]["plural"], spec["names"]["singular"]) == (contract.PLURAL, contract.SINGULAR)
    assert spec["names"]["shortNames"] == [contract.SHORT_NAME]
    [version] = spec["versions"]
    assert version["name"] == contract.API_VERSION


def test_size() -> None:
    assert CRD_FILE.stat().st_size < 64 * 1024


def test_subresources(crd: Object) -> None:
    scale = crd["spec"]["versions"][0]["subresources"]["scale"]
    assert scale == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }


def test_bounds(schema: Object) -> None:
    spec = schema["spec"]["properties"]
    threshold = spec["shift"]["properties"]["thresholdTokens"]
    assert (threshold["minimum"], threshold["maximum"]) == (
        contract.MIN_THRESHOLD_TOKENS,
        contract.MAX_THRESHOLD_TOKENS,
    )
    assert spec["parallelism"]["properties"]["gpus"]["maximum"] == contract.MAX_GPUS
    assert tuple(spec["shift"]["properties"]["policy"]["enum"]) == specs.POLICIES
    assert spec["replicas"]["default"] == 1, "GET /scale fails without one"


def test_fields(schema: Object) -> None:
    fields = {name: set(value.get("properties", ())) for name, value in schema["spec"]["properties"].items()}
    assert fields == {
        "model": {"uri", "servedName", "dtype", "revision", "secretRef", "quantization"},
        "cache": {"claimName", "sizeLimit"},
        "parallelism": {"gpus", "sequence", "tensor"},
        "shift": {"policy", "thresholdTokens", "adaptive", "schedules", "calibration"},
        "engine": {
            *("maxNumSeqs", "maxBatchedTokens", "maxModelLen", "gpuMemoryPercent", "prefixCaching", "kvCacheDtype"),
        },
        "runtime": {"image", "device", "resources", "env", "shmSize", "gpuResource", "resourceClaims"},
        "placement": {
            *("nodeSelector", "tolerations", "spread", "priorityClassName", "runtimeClassName", "schedulerName"),
        },
        "podTemplate": {"metadata", "spec"},
        "replicas": set(),
        "suspend": set(),
        "autoscaling": {"mode", "min", "max", "maxGpus", "shiftBeforeScale", "windows", "onMetricsLoss"},
        "slo": {"ttftMs", "tpotMs", "percentile"},
        "rollout": {
            *("strategy", "paused", "restartedAt", "progressDeadlineSeconds", "drainSeconds", "autoRollback"),
        },
        "disruption": {"maxUnavailable"},
        "observability": {"logs"},
        "service": {"type", "annotations", "tls"},
    }


def test_defaults_of_the_autoscaler_are_those_of_the_core(schema: Object) -> None:
    """An object that was stored before a field existed is read without the API server's defaults."""

    def defaults(node: Object) -> Object:
        found = {}
        for name, child in node["properties"].items():
            if "properties" in child:
                found[name] = defaults(child)
            elif "default" in child:
                found[name] = child["default"]
        return found

    spec = {"model": {"uri": "file:///m"}, "parallelism": {"gpus": 2}}
    declared = {**defaults(schema["spec"]["properties"]["autoscaling"]), "max": 5}
    told = specs.parse({**spec, "autoscaling": declared}).autoscaling
    assert told == specs.parse({**spec, "autoscaling": {"max": 5}}).autoscaling
    assert len(declared["shiftBeforeScale"]) == len(declared["windows"]) == 4
    assert tuple(schema["spec"]["properties"]["slo"]["properties"]["percentile"]["enum"]) == specs.PERCENTILES
    losses = schema["spec"]["properties"]["autoscaling"]["properties"]["onMetricsLoss"]["enum"]
    assert losses == [str(loss) for loss in MetricsLoss]


def test_names_that_the_operator_sets_are_reserved(schema: Object) -> None:
    name = schema["spec"]["properties"]["runtime"]["properties"]["env"]["items"]["properties"]["name"]
    rule = name["x-kubernetes-validations"][0]["rule"]
    for variable in RESERVED_ENVIRONMENT:
        assert f"'{variable}'" in rule


def test_every_status_field_of_the_operator_is_declared(schema: Object) -> None:
    declared = set(schema["status"]["properties"])
    written = {
        "observedGeneration", "replicas", "readyReplicas", "readyOfDesired", "selector", "templateHash", "gear",
        "policyGeneration", "policy", "conditions", "pods", "decisions", "lastFailure", "settledReplicas", "capacity",
        "crossover", "slowestStart", "rollout", "adaptive", "schedule",
    }  # fmt: skip
    assert written == declared


def test_lists_and_strings_under_rules_are_bounded(schema: Object) -> None:
    """The API server refuses rules over what it cannot bound."""

    def unbounded(node: Object, where: str) -> list[str]:
        found = []
        if node.get("type") == "array" and "maxItems" not in node:
            found.append(where)
        for name, child in node.get("properties", {}).items():
            found += unbounded(child, f"{where}.{name}")
        if isinstance(node.get("items"), dict):
            found += unbounded(node["items"], f"{where}[]")
        return found

    assert unbounded(schema["spec"], "spec") == []


def test_what_looks_like_a_time_is_the_same_to_the_operator(schema: Object) -> None:
    restarted = schema["spec"]["properties"]["rollout"]["properties"]["restartedAt"]
    assert f"self.matches('^{TIME.pattern}$')" == restarted["x-kubernetes-validations"][0]["rule"]


def test_no_string_of_the_spec_has_a_format(schema: Object) -> None:
    """Beside one the API server takes any list for the string."""

    def formats(node: Any, where: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        found = [where] if node.get("type") == "string" and "format" in node else []
        parts = {**node.get("properties", {}), "[]": node.get("items"), "{}": node.get("additionalProperties")}
        return found + [path for name, child in parts.items() for path in formats(child, f"{where}.{name}")]

    assert formats(schema["spec"], "spec") == []


def test_example_is_a_valid_spec() -> None:
    example = yaml.safe_load(EXAMPLE.read_text())
    spec = specs.parse(example["spec"])
    assert (example["kind"], spec.gpus, spec.policy.threshold_tokens) == (contract.KIND, 2, 64)
    assert "replicas" not in example["spec"], "applying it again must not undo a scale-out"


# --- chart ---


def test_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_own_roles_can_be_left_to_somebody_else() -> None:
    documents = rendered("--set", "rbac.create=false", "--set", "serviceAccount.create=false")
    assert not [d for d in documents if d["kind"].endswith(("Role", "RoleBinding", "ServiceAccount"))]


def test_a_budget_never_holds_up_the_drain_of_a_node() -> None:
    [budget] = of_kind(rendered(), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in budget["spec"]


def test_operators_port_is_for_monitoring_only() -> None:
    [policy] = of_kind(rendered("--set", "metrics.fromNamespaces={prom}"), "NetworkPolicy")
    [rule] = policy["spec"]["ingress"]
    [peer] = rule["from"]
    [names] = peer["namespaceSelector"]["matchExpressions"]
    assert names["values"] == ["prom", NAMESPACE]
    assert [port["port"] for port in rule["ports"]] == [8080]


@pytest.mark.parametrize("namespaces", [(), ("a", "b")])
def test_monitors_select_what_the_operator_makes(namespaces: tuple[str, ...]) -> None:
    watched = ("--set", f"watchNamespaces={{{','.join(namespaces)}}}") if namespaces else ()
    monitors = of_kind(rendered("--set", "metrics.podMonitor=Always", *watched), "PodMonitor")
    operator, runtimes = (monitor["spec"] for monitor in monitors)
    [deployment] = of_kind(rendered(), "Deployment")
    assert operator["selector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    labels = names.selector("some")
    assert runtimes["selector"]["matchLabels"].items() <= labels.items()
    [endpoint] = runtimes["podMetricsEndpoints"]
    [relabeling] = endpoint["relabelings"]
    [label] = [key for key in labels if key == contract.LABEL_DEPLOYMENT]
    assert relabeling["sourceLabels"] == ["__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)]
    wanted = {"matchNames": list(namespaces)} if namespaces else {"any": True}
    assert runtimes["namespaceSelector"] == wanted


def test_objects_of_the_prometheus_operator_need_its_kinds() -> None:
    known = ("--api-versions", "monitoring.coreos.com/v1/PodMonitor")
    assert not of_kind(rendered(), "PodMonitor")
    assert len(of_kind(rendered(*known), "PodMonitor")) == 2
    assert not of_kind(rendered(*known), "PrometheusRule")
    assert not of_kind(rendered(*known, "--set", "metrics.podMonitor=Never"), "PodMonitor")


def test_cluster_mode() -> None:
    assert_least_rights(operator_rules(rendered()))


def test_namespaced_mode_has_no_cluster_role() -> None:
    documents = rendered("--set", "watchNamespaces={team-a,team-b}")
    assert not of_kind(documents, "ClusterRole")
    assert not of_kind(documents, "ClusterRoleBinding")
    roles = {role["metadata"]["namespace"]: role["rules"] for role in of_kind(documents, "Role")}
    assert set(roles) == {"shift-system", "team-a", "team-b"}
    assert_least_rights(roles["team-a"])


def assert_least_rights(rules: list[Object]) -> None:
    verbs = {(resource, verb) for rule in rules for resource in rule["resources"] for verb in rule["verbs"]}
    assert ("secrets", "list") not in verbs
    assert ("secrets", "watch") not in verbs
    assert {resource for resource, verb in verbs if verb == "delete"} == {"controllerrevisions", "pods"}
    assert ("pods", "create") not in verbs, "Deployments make pods"
    assert (contract.PLURAL, "patch") not in verbs, "replicas go through /scale, the rest is the user's"
    assert {("shiftdeployments/scale", "patch"), ("shiftdeployments/status", "patch")} <= verbs
    assert not any("*" in pair for pair in verbs)


def test_pod_meets_the_restricted_level() -> None:
    [deployment] = of_kind(rendered(), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_environment_is_what_the_operator_reads() -> None:
    [deployment] = of_kind(rendered("--set", "watchNamespaces={a,b}"), "Deployment")
    environment = {v["name"]: v.get("value") for v in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert set(environment) <= set(operator_settings.VARIABLES)
    read = operator_settings.from_environment({k: v for k, v in environment.items() if v is not None})
    assert (read.watch_namespaces, read.lease_name, read.log_format) == (("a", "b"), "shift", "json")


def test_leader_role_names_the_lease() -> None:
    documents = rendered()
    role = next(r for r in of_kind(documents, "Role") if r["metadata"]["name"].endswith("-leader"))
    named = next(rule for rule in role["rules"] if "resourceNames" in rule)
    [deployment] = of_kind(documents, "Deployment")
    environment = {v["name"]: v.get("value") for v in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert named["resourceNames"] == [environment["SHIFT_LEASE_NAME"]]


def test_every_value_has_a_schema_and_every_schema_a_value() -> None:
    def leaves(node: Object, where: str = "") -> set[str]:
        """An empty object or list is a value whose content is the user's."""
        found = set()
        for name, child in node.items():
            inner = leaves(child, f"{where}{name}.") if isinstance(child, dict) and child else {f"{where}{name}"}
            found |= inner
        return found

    def declared(node: Object, where: str = "") -> set[str]:
        found = set()
        for name, child in node["properties"].items():
            found |= declared(child, f"{where}{name}.") if "properties" in child else {f"{where}{name}"}
        return found

    values = leaves(yaml.safe_load((CHART / "values.yaml").read_text()))
    schema = declared(json.loads((CHART / "values.schema.json").read_text()))
    free = {"resources.requests.", "resources.limits.", "dashboard.labels."}  # keys of the user's own
    cut = {next((part.rstrip(".") for part in free if value.startswith(part)), value) for value in values}
    # Helm's own, and what the API knows and has no use here.
    assert schema - cut == {"global", "resources.claims"}
    assert cut - schema == set()


@pytest.mark.parametrize(
    "bad",
    [
        "unknown=1",
        "replicas=-1",
        "log.level=loud",
        "leaseSeconds=1",
        "image.repository=",
        "watchNamespaces={Upper}",
        "metrics.podMonitor=yes",
        "metrics.fromNamespaces={A_b}",
        "metrics.intervalSeconds=0",
        "alerts.prometheusRule=true",
        "dashboard.labels.x=3",
        "rbac.create=maybe",
        "resources.limits.memory=lots",
    ],
)
def test_bad_values_are_refused(bad: str) -> None:
    done = helm("template", "shift", str(CHART), "--set", bad)
    assert done.returncode != 0
    assert "values don't meet the specifications" in done.stderr

from __future__ import annotations

from typing import Any

import pytest
from shiftoperator import manifests
from shiftoperator import spec as specs
from shiftoperator.errors import InvalidSpecError
from shiftoperator.manifests.overlay import overlay
from shiftoperator.manifests.overrides import RESERVED_ENVIRONMENT
from shiftprotos import contract

from .conftest import CONTROL, Make

Object = dict[str, Any]
REVISION: Object = {"data": {"template": {}}}


def template(resource: Object) -> Object:
    return manifests.pod_template("gemma", specs.parse(resource["spec"]), "h", "default:1")


def container(resource: Object) -> Object:
    found: Object = template(resource)["spec"]["containers"][0]
    return found


def test_command_line(make: Make) -> None:
    assert " ".join(container(make.resource())["args"]) == (
        "serve /models/sub/gemma.gguf --ranks 2 --base-gear sp2 --device cpu --dtype auto --served-name gemma-270m "
        "--max-num-seqs 16 --max-batched-tokens 512 --drain-seconds 30 "
        "--host 0.0.0.0 --port 9000 --control-port 9001 --ops-port 8080"
    )


def test_how_weights_must_be_stored_is_on_the_command_line(make: Make) -> None:
    model = {"uri": "pvc://models/llama", "quantization": "fp8"}
    assert "--quantization fp8" in " ".join(container(make.resource(model=model))["args"])
    assert "--quantization" not in container(make.resource())["args"]


def test_what_the_engine_keeps_is_on_the_command_line(make: Make) -> None:
    engine = {"gpuMemoryPercent": 60, "prefixCaching": False, "kvCacheDtype": "bfloat16"}
    arguments = " ".join(container(make.resource(engine=engine))["args"])
    assert "--no-prefix-cache" in arguments
    assert "--kv-memory-percent 60 --kv-cache-dtype bfloat16" in arguments
    untold = " ".join(container(make.resource(engine={"prefixCaching": True}))["args"])
    assert not {"--no-prefix-cache", "--kv-memory-percent", "--kv-cache-dtype"} & set(untold.split())


def test_policy_is_no_argument(make: Make) -> None:
    arguments = container(make.resource())["args"]
    assert not {"--policy", "--threshold"} & set(arguments)


def test_restricted_security(make: Make) -> None:
    pod = template(make.resource())["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "fsGroup" not in pod["securityContext"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_volumes_and_environment(make: Make) -> None:
    pod = template(make.resource())["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["control"]["secret"] == {"secretName": "gemma-control", "defaultMode": 0o444}
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    environment = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
    assert environment[contract.ENV_CONTROL_TOKEN_FILE] == "/run/shift/control/token"
    assert environment[contract.ENV_TERMINATION_LOG] == "/dev/termination-log"
    assert contract.ENV_POD_NAME in environment


def test_probes(make: Make) -> None:
    made = container(make.resource())
    paths = {probe: made[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/livez", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
    startup = made["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_cuda_asks_for_gpus(make: Make) -> None:
    resource = make.resource(runtime={"device": "cuda", "resources": {"requests": {"cpu": "4"}}})
    assert container(resource)["resources"] == {"limits": {"nvidia.com/gpu": "2"}, "requests": {"cpu": "4"}}
    assert container(resource)["image"] == "default:1"


def test_pod_template_merges(make: Make) -> None:
    mount = {"name": "wheels", "mountPath": "/opt/wheels", "readOnly": True}
    claim = {"name": "wheels", "persistentVolumeClaim": {"claimName": "wheels"}}
    over = {
        "metadata": {"labels": {contract.LABEL_DEPLOYMENT: "stolen", "team": "a"}},
        "spec": {
            "nodeSelector": {"zone": "1"},
            "containers": [{"name": "runtime", "volumeMounts": [mount]}, {"name": "helper", "image": "x"}],
            "volumes": [claim],
        },
    }
    made = template(make.resource(podTemplate=over))
    runtime, helper = made["spec"]["containers"]
    assert mount in runtime["volumeMounts"]
    assert len(runtime["volumeMounts"]) == 4
    assert helper["name"] == "helper"
    assert claim in made["spec"]["volumes"]
    assert made["spec"]["nodeSelector"] == {"zone": "1"}
    assert made["metadata"]["labels"]["team"] == "a"
    assert made["metadata"]["labels"][contract.LABEL_DEPLOYMENT] == "gemma"


def runtime(**keys: Any) -> Object:
    return {"spec": {"containers": [{"name": "runtime", **keys}]}}


@pytest.mark.parametrize(
    ("over", "path"),
    [
        (None, "podTemplate must be an object"),
        ({"metadata": None}, "podTemplate.metadata must be an object, not null"),
        ({"metadata": {"labels": None}}, "podTemplate.metadata.labels must be an object, not null"),
        ({"metadata": {"annotations": ["a"]}}, "podTemplate.metadata.annotations must be an object"),
        ({"spec": None}, "podTemplate.spec must be an object"),
        ({"spec": {"volumes": ["x"]}}, 'podTemplate.spec.volumes[0] must be an object, not "x"'),
        ({"spec": {"volumes": {"name": "x"}}}, "podTemplate.spec.volumes must be a list of objects"),
        ({"spec": {"volumes": [{"name": ["x"]}]}}, "podTemplate.spec.volumes[0].name must say which item this is"),
        ({"spec": {"containers": None}}, "podTemplate.spec.containers must be a list of objects, not null"),
        ({"spec": {"initContainers": [{"name": "i", "env": ["A"]}]}}, "podTemplate.spec.initContainers[0].env[0]"),
        (runtime(env=["A=b"]), 'podTemplate.spec.containers[0].env[0] must be an object, not "A=b"'),
        (runtime(volumeMounts=[{"name": "x"}]), "podTemplate.spec.containers[0].volumeMounts[0].mountPath"),
        ({"spec": {"securityContext": "none"}}, "podTemplate.spec.securityContext must be an object"),
        (runtime(securityContext=[]), "podTemplate.spec.containers[0].securityContext must be an object"),
        (runtime(livenessProbe=[]), "podTemplate.spec.containers[0].livenessProbe must be an object"),
    ],
)
def test_a_pod_template_of_the_wrong_shape_is_refused(make: Make, over: Any, path: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        template(make.resource(podTemplate=over))
    assert caught.value.message.startswith(path)


@pytest.mark.parametrize(
    ("over", "path"),
    [
        *((runtime(env=[{"name": name, "value": "x"}]), "containers[0].env[0]") for name in RESERVED_ENVIRONMENT),
        (runtime(image="mine:1"), "containers[0].image"),
        (runtime(command=["sh"]), "containers[0].command"),
        (runtime(args=["x"]), "containers[0].args"),
        (runtime(terminationMessagePath="/tmp/x"), "containers[0].terminationMessagePath"),
        (runtime(ports=[{"name": "grpc", "containerPort": 7000}]), "containers[0].ports[0]"),
        (runtime(ports=[{"name": "http", "containerPort": contract.CONTROL_PORT}]), "containers[0].ports[0]"),
        (runtime(volumeMounts=[{"name": "v", "mountPath": "/run/shift//control/"}]), "containers[0].volumeMounts[0]"),
        (runtime(volumeMounts=[{"name": "v", "mountPath": "/run/shift/control/token"}]), "containers[0].volumeMounts"),
        (runtime(volumeMounts=[{"name": "v", "mountPath": "/models"}]), "containers[0].volumeMounts[0]"),
        (runtime(volumeMounts=[{"name": "v", "mountPath": "/dev/termination-log"}]), "containers[0].volumeMounts[0]"),
        (runtime(readinessProbe={"exec": {"command": ["true"]}}), "containers[0].readinessProbe.exec"),
        (runtime(livenessProbe={"httpGet": {"path": "/"}}), "containers[0].livenessProbe.httpGet"),
        (runtime(resources={"limits": {"nvidia.com/gpu": "1"}}), "containers[0].resources.limits"),
        ({"spec": {"volumes": [{"name": "control", "emptyDir": {}}]}}, "volumes[0]"),
        ({"spec": {"volumes": [{"name": "models", "emptyDir": {}}]}}, "volumes[0]"),
        ({"spec": {"hostNetwork": True}}, "hostNetwork"),
        ({"spec": {"restartPolicy": "Never"}}, "restartPolicy"),
    ],
)
def test_what_is_not_the_pod_templates_to_set_is_refused(make: Make, over: Object, path: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        template(make.resource(podTemplate=over))
    assert caught.value.message.startswith(f"podTemplate.spec.{path}")


def test_a_model_without_a_claim_may_come_from_a_volume_of_the_users(make: Make) -> None:
    over = runtime(volumeMounts=[{"name": "models", "mountPath": "/models"}])
    over["spec"]["volumes"] = [{"name": "models", "hostPath": {"path": "/srv"}}]
    made = template(make.resource(model={"uri": "file:///models/gemma.gguf"}, podTemplate=over))
    assert over["spec"]["volumes"][0] in made["spec"]["volumes"]


def test_what_a_pod_template_may_set(make: Make) -> None:
    over = runtime(
        env=[{"name": "HF_HOME", "value": "/tmp"}],
        ports=[{"name": "debug", "containerPort": 7000}],
        startupProbe={"failureThreshold": 9},
        resources={"claims": [{"name": "gpu"}]},
        volumeMounts=[{"name": "extra", "mountPath": "/models-extra"}],
    )
    over["metadata"] = {"labels": {"env": "prod"}, "annotations": {"ports": "x"}}
    over["spec"]["nodeSelector"] = {"volumes": "fast"}
    over["spec"]["containers"].append({"name": "helper", "image": "x", "command": ["sh"]})
    made = template(make.resource(podTemplate=over))
    [ours, helper] = made["spec"]["containers"]
    assert ours["startupProbe"]["httpGet"]["path"] == "/livez"
    assert ours["startupProbe"]["failureThreshold"] == 9
    assert helper["command"] == ["sh"]
    assert made["metadata"]["labels"]["env"] == "prod"


def test_overlay_rules() -> None:
    base = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["x"], "keep": 1}
    over = {"env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}], "args": ["y"]}
    assert overlay(base, over) == {
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
        "args": ["y"],
        "keep": 1,
    }


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"shift": {"policy": "Throughput"}}, True),
        ({"shift": {"policy": "Auto", "thresholdTokens": 9}}, True),
        ({"replicas": 5}, True),
        ({"autoscaling": {"mode": "Disabled"}}, True),
        ({"slo": {}}, True),
        ({"runtime": {"image": "runtime:2", "device": "cpu"}}, False),
        ({"engine": {"maxNumSeqs": 32}}, False),
        ({"parallelism": {"gpus": 4}}, False),
        ({"model": {"uri": "pvc://models/other.gguf"}}, False),
        ({"podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}}, False),
        ({"service": {"type": "NodePort", "annotations": {"a": "b"}}}, True),
        ({"service": {"tls": {"secretName": "cert"}}}, False),
    ],
)
def test_what_replaces_pods(make: Make, changed: Object, same: bool) -> None:
    before = manifests.template_hash(make.resource()["spec"])
    assert (manifests.template_hash(make.resource(**changed)["spec"]) == before) is same


def test_children(make: Make) -> None:
    resource = make.resource()
    revision = manifests.controller_revision(resource, "h", template(resource), 1)
    made = manifests.children(resource, specs.parse(resource["spec"]), revision, CONTROL, "shift-system")
    by_kind = {(child["kind"], child["metadata"]["name"]): child for child in made}
    assert set(manifests.singletons("gemma")) | {("ControllerRevision", "gemma-h")} == set(by_kind)
    assert all(child["metadata"]["ownerReferences"][0]["uid"] == "u1" for child in made)
    assert made[-1]["kind"] == "Deployment", "what pods mount must be there first"
    deployment = by_kind["Deployment", "gemma"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    headless = by_kind["Service", "gemma-headless"]["spec"]
    assert headless["clusterIP"] == "None"
    assert headless["publishNotReadyAddresses"] is False
    assert "clusterIP" not in by_kind["Service", "gemma"]["spec"]


def services(resource: Object) -> tuple[Object, Object]:
    revision = {"data": {"template": template(resource)}}
    made = manifests.children(resource, specs.parse(resource["spec"]), revision, CONTROL, "shift-system")
    found = {child["metadata"]["name"]: child for child in made if child.get("kind") == "Service"}
    return found["gemma"], found["gemma-headless"]


def test_a_service_is_of_the_type_asked_for_and_the_headless_one_stays(make: Make) -> None:
    for type_ in ("NodePort", "LoadBalancer"):
        plain, headless = services(make.resource(service={"type": type_, "annotations": {"cloud/zone": "a"}}))
        assert (plain["spec"]["type"], plain["metadata"]["annotations"]) == (type_, {"cloud/zone": "a"})
        assert (headless["spec"]["type"], headless["spec"]["clusterIP"]) == ("ClusterIP", "None")
        assert "annotations" not in headless["metadata"]
    plain, _ = services(make.resource())
    assert (plain["spec"]["type"], "annotations" in plain["metadata"]) == ("ClusterIP", False)


@pytest.mark.parametrize(
    ("auth", "asks"), [({}, False), ({"clientAuth": "None"}, False), ({"clientAuth": "Required"}, True)]
)
def test_a_certificate_for_clients(make: Make, auth: Object, asks: bool) -> None:
    resource = make.resource(service={"tls": {"secretName": "cert", **auth}})
    pod = template(resource)["spec"]
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == "serving-tls"]
    assert volume["secret"] == {"secretName": "cert", "defaultMode": 0o444}
    [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "serving-tls"]
    assert (mount["mountPath"], mount["readOnly"]) == ("/run/shift/tls", True)
    arguments = " ".join(pod["containers"][0]["args"])
    assert "--tls-cert /run/shift/tls/tls.crt --tls-key /run/shift/tls/tls.key" in arguments
    assert ("--tls-client-ca /run/shift/tls/ca.crt" in arguments) is asks
    assert {probe["httpGet"]["scheme"] for name, probe in pod["containers"][0].items() if name.endswith("Probe")} == {
        "HTTP"
    }, "the ops port stays as it is"
    for service in services(resource):
        assert {port["appProtocol"] for port in service["spec"]["ports"]} == {"https"}


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ({"type": "ExternalName"}, "'ExternalName' is unknown"),
        ({"tls": {}}, "secretName is empty"),
        ({"tls": {"secretName": "a", "clientAuth": "Maybe"}}, "'Maybe' is unknown"),
    ],
)
def test_a_service_that_cannot_be_is_refused(make: Make, service: Object, said: str) -> None:
    with pytest.raises(InvalidSpecError, match=said):
        specs.parse(make.resource(service=service)["spec"])


def test_the_certificates_volume_is_the_users_while_there_is_none_of_ours(make: Make) -> None:
    own = {"volumes": [{"name": "serving-tls", "emptyDir": {}}]}
    mounted = {"spec": {**own, "containers": [{"name": "runtime", "volumeMounts": [
        {"name": "serving-tls", "mountPath": "/run/shift/tls"}]}]}}  # fmt: skip
    template(make.resource(podTemplate=mounted))
    for over in ({"spec": own}, {"spec": {"containers": mounted["spec"]["containers"]}}):
        with pytest.raises(InvalidSpecError, match=r"serving-tls|the operator mounts /run/shift/tls"):
            template(make.resource(podTemplate=over, service={"tls": {"secretName": "cert"}}))


def test_control_port_is_for_the_operator_only(make: Make) -> None:
    resource = make.resource()
    made = manifests.children(resource, specs.parse(resource["spec"]), REVISION, CONTROL, "shift-system")
    policy = next(child for child in made if child.get("kind") == "NetworkPolicy")["spec"]
    rules = [rule for rule in policy["ingress"] if any(p["port"] == contract.CONTROL_PORT for p in rule["ports"])]
    [rule] = rules
    [peer] = rule["from"]
    assert peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "shift-system"}


def test_ops_port_is_for_monitoring_only(make: Make) -> None:
    """It was open to everybody, beside the ports of clients."""
    resource = make.resource()
    made = manifests.children(
        resource, specs.parse(resource["spec"]), REVISION, CONTROL, "shift-system", ("prometheus", "monitoring")
    )
    policy = next(child for child in made if child.get("kind") == "NetworkPolicy")["spec"]
    [rule] = [rule for rule in policy["ingress"] if any(p["port"] == contract.OPS_PORT for p in rule["ports"])]
    assert [p["port"] for p in rule["ports"]] == [contract.OPS_PORT]
    [peer] = rule["from"]
    [names] = peer["namespaceSelector"]["matchExpressions"]
    assert (names["key"], names["operator"]) == ("kubernetes.io/metadata.name", "In")
    assert names["values"] == ["monitoring", "prometheus", "shift-system"]


def test_only_ports_that_something_listens_on_are_open(make: Make) -> None:
    resource = make.resource()
    made = manifests.children(resource, specs.parse(resource["spec"]), REVISION, CONTROL, "shift-system")
    listening = {port["name"]: port["containerPort"] for port in container(resource)["ports"]}
    policy = next(child for child in made if child.get("kind") == "NetworkPolicy")["spec"]
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == set(listening.values())
    for service in (child["spec"] for child in made if child.get("kind") == "Service"):
        assert {port["targetPort"]: port["port"] for port in service["ports"]}.items() <= listening.items()

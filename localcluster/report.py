"""`status`: one line per component, for people."""

from __future__ import annotations

import json

from localcluster import health
from localcluster.api import Api
from localcluster.processes import ProcessTable, uptime_seconds
from localcluster.settings import NODE_NAME, Network, Settings


def status(settings: Settings) -> int:
    plan_file = settings.state / "network.json"
    if not plan_file.exists():
        print(f"no cluster: {settings.state} does not exist. Start it with `cluster.py up`.")
        return 1
    plan = Network(**json.loads(plan_file.read_text()))
    table = ProcessTable(settings.records, settings.logs)
    problems = {name: check() for name, check in health.checks(settings, plan).items()}
    print(f"{'COMPONENT':<26}{'PID':<9}{'UPTIME':<10}HEALTH")
    for name, problem in problems.items():
        record = table.alive(name)
        if record is None:
            problems[name] = problem = "not running"
        pid, uptime = ("-", "-") if record is None else (str(record.pid), f"{uptime_seconds(record):.0f} s")
        print(f"{name:<26}{pid:<9}{uptime:<10}{problem or 'healthy'}")
    if problems["kube-apiserver"] is None:
        problems["node"] = _node(Api(settings.kubeconfig))
    print(f"networks: pods {plan.pod_cidr}, services {plan.service_cidr}, node {plan.node_ip}")
    print(f"logs: {settings.logs}\n\nexport KUBECONFIG={settings.kubeconfig}")
    return 0 if all(problem is None for problem in problems.values()) else 1


def _node(api: Api) -> str | None:
    problem = health.node_problem(api)
    version = json.loads(api.call("GET", "/version"))["gitVersion"]
    print(f"node {NODE_NAME}: {problem or 'Ready'}   Kubernetes {version}")
    return problem

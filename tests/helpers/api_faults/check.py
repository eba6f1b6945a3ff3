"""Runs a workload with faults and compares where it ends with where the run without faults ended."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from helpers.api_faults.case import Case
from helpers.api_faults.launcher import Launched, warm_up
from helpers.api_faults.proxy import Proxy
from helpers.api_faults.quiet import Quiet
from helpers.api_faults.state import counts, differences, gather
from helpers.api_faults.workloads import WORKLOADS, NotReachedError, Workload, World
from helpers.control_plane.apiclient import ApiClient
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.plane import ControlPlane

Object = dict[str, Any]

# What is as it should be stays so for longer than the operator's own interval of looking.
QUIET_SECONDS = 1.3
_LEAD_SECONDS = 3.0
_USER = "operator"
_CLAIMS = ("gemma-270m", "shift-wheels")
_GOOD_RUNS = 3
# Of the process: laboratories may share a control plane.
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Result:
    case: Case
    seconds: float
    state: Object
    counted: Counter[str]
    struck: Counter[str]
    log: str
    wrong: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        return f"{self.case}: {self.seconds:.1f} s, struck {sum(self.struck.values())}"

    def __str__(self) -> str:
        return "\n  ".join([self.line, *self.wrong[:12]])


@dataclass
class Laboratory:
    """One control plane for many cases, beside each other if wished. Knows how a workload ends without faults."""

    plane: ControlPlane
    kubelet: Kubelet
    folder: Path
    good: dict[str, Result] = field(default_factory=dict)
    # Runs without faults that ended otherwise than others: what is wrong here needs no fault.
    odd: list[Result] = field(default_factory=list)

    async def open(self) -> None:
        self._settling: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._operator_user = self.plane.kubeconfig(_USER, "system:masters")
        self._api = ApiClient(self.plane.kubeconfig("user", "system:masters"))
        await self._api.open()
        await asyncio.to_thread(warm_up)

    async def close(self) -> None:
        await self._api.close()

    async def baseline(self, workload: str) -> Result:
        """The end of a run without faults that two of them agree on."""
        async with self._settling[workload]:
            if workload not in self.good:
                self.good[workload] = await self._agreed(workload)
        return self.good[workload]

    async def _agreed(self, workload: str) -> Result:
        runs = [await self.run(Case(workload)) for _ in range(2)]
        while True:
            wrong = [_unlike(workload, one, other) for one, other in itertools.pairwise(runs)]
            if not wrong[-1]:
                return runs[-1]
            self.odd.append(replace(runs[-1], wrong=tuple(wrong[-1])))
            if len(runs) >= _GOOD_RUNS:
                raise AssertionError(f"{workload} does not end the same way without faults: {wrong}\n{runs[-1].log}")
            runs.append(await self.run(Case(workload)))

    async def check(self, case: Case, bug: str = "") -> Result:
        return await self.run(case, await self.baseline(case.workload), bug)

    async def run(self, case: Case, good: Result | None = None, bug: str = "") -> Result:
        namespace = f"plan-{next(_numbers)}"
        await asyncio.to_thread(self.plane.create_namespace, namespace)
        await self._add_claims(namespace)
        folder = self.folder / namespace
        folder.mkdir(parents=True)
        operators: list[Launched] = []
        proxy = Proxy(self._operator_user, case.faults, kill=lambda: operators[0].restart())
        spared = Proxy(self._operator_user, (), kill=lambda: None)
        await proxy.start()
        await spared.start()
        try:
            for i, way in enumerate((proxy, spared)[: 1 + case.standby]):
                config = way.kubeconfig_for_operator(folder)
                operators.append(Launched(config, namespace, f"operator-{i}", folder / f"operator-{i}.log", bug))
                operators[-1].start()
                await self._somebody_leads(namespace)
            result = await self._observe(case, good, namespace, proxy, folder)
            if not all(operator.alive for operator in operators):
                return replace(result, wrong=(*result.wrong, "an operator ended by itself"))
            return result
        finally:
            for operator in operators:
                operator.kill()
            await proxy.stop()
            await spared.stop()
            await asyncio.to_thread(self.plane.delete_namespace, namespace)

    async def _add_claims(self, namespace: str) -> None:
        """Those that the example names: a spec whose model is not there is refused."""
        claim = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
        for name in _CLAIMS:
            body = {"metadata": {"name": name}, "spec": claim}
            await self._api.call("POST", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", body)

    async def _somebody_leads(self, namespace: str) -> None:
        """So that it is not chance which of two operators leads; faults may keep it from leading."""
        deadline = time.monotonic() + _LEAD_SECONDS
        while time.monotonic() < deadline:
            leases = await self._api.call("GET", f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
            if leases["items"]:
                return
            await asyncio.sleep(0.05)

    async def _observe(self, case: Case, good: Result | None, namespace: str, proxy: Proxy, folder: Path) -> Result:
        began, mark = time.monotonic(), self.plane.audit.position()
        workload = WORKLOADS[case.workload]
        quiet = Quiet(self.plane.audit, namespace, _USER, 1 + case.standby)
        world = World(self._api, self.kubelet, namespace, quiet)
        wrong: list[str] = []
        try:
            await workload.run(world)
        except NotReachedError as error:
            wrong.append(str(error))
            if good is not None:
                wrong += differences(good.state, await self._gather(namespace, workload))
        state, calm_since, took = {}, time.monotonic(), time.monotonic() - began
        while not wrong:
            before, state = state, await self._gather(namespace, workload)
            expected = before if good is None else good.state
            if state != expected:
                calm_since = time.monotonic()
            took = calm_since - began
            if time.monotonic() - calm_since > QUIET_SECONDS:
                break
            if why := quiet.over():
                wrong += [why, *differences(expected, state)]
            await asyncio.sleep(0.2)
        counted = counts(self.plane.audit, mark, namespace, _USER)
        if good is not None and not wrong:
            wrong += _miscounted(good.counted, counted, workload.exact_counts)
        log = "\n".join([*proxy.log, *_logs(folder)])
        return Result(case, took, state, counted, proxy.struck, log, tuple(wrong))

    async def _gather(self, namespace: str, workload: Workload) -> Object:
        runtimes = self.kubelet.runtimes(namespace).values()
        return await gather(self._api, namespace, runtimes, workload.count_generations)


def _unlike(workload: str, one: Result, other: Result) -> list[str]:
    wrong = [*one.wrong, *other.wrong, *differences(one.state, other.state)]
    if WORKLOADS[workload].exact_counts:
        wrong += differences(dict(one.counted), dict(other.counted), "counts")
    return wrong


def _logs(folder: Path) -> list[str]:
    return [f"{path.name}:\n{path.read_text(errors='replace')[-12_000:]}" for path in folder.glob("*.log")]


def _miscounted(good: Counter[str], found: Counter[str], exact: bool) -> list[str]:
    if exact:
        return differences(dict(good), dict(found), "counts")
    twice = {what: number for what, number in found.items() if number > max(good[what], _MOST.get(what, 1))}
    return [f"counts: {number} times {what}" for what, number in twice.items()]


# Of a resource with two pods, whatever came of it.
_MOST = {"services created": 2, "pods created": 2}

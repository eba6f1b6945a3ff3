"""Every property of the spec, with every kind of value, on a real API server with a real operator."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers.campaign_outcome import Outcome
from helpers.control_plane.apiclient import ApiClient
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import operator as operator_process
from helpers.control_plane.plane import HOW_TO_BUILD, ControlPlane, control_plane, example, find_binary
from helpers.spec_properties.check import Subject, Tally, check_all
from helpers.spec_properties.objects import make_objects
from helpers.spec_properties.schema import ITEM, KEY, Property, Schema, properties, spec_schema

AT_ONCE = 5
SMALLEST: Schema = {"model": {"uri": "pvc://gemma-270m/m.gguf"}, "parallelism": {"gpus": 2}}
_NAMESPACE = "properties"


def spec_properties(seed: int, scale: float) -> Outcome:
    """Bad are words that are not exact, ends that differ, values that are neither refused nor settle, and properties
    that nothing could be put into."""
    kube = find_binary()
    if kube is None:
        return Outcome(0, "cases", 1, (HOW_TO_BUILD,))
    with (
        TemporaryDirectory() as folder,
        control_plane(kube, Path(folder) / "plane") as plane,
        Kubelet(plane),
    ):
        return asyncio.run(_all(plane, Path(folder), seed, scale))


async def _all(plane: ControlPlane, folder: Path, seed: int, scale: float) -> Outcome:
    plane.create_namespace(_NAMESPACE)
    for claim in ("gemma-270m", "shift-wheels"):
        plane.create_claim(_NAMESPACE, claim)
    chosen = list(properties(spec_schema()))
    count = len(chosen)
    random.Random(seed).shuffle(chosen)
    chosen = chosen[: max(1, round(count * scale))]
    api = ApiClient(plane.kubeconfig("user", "system:masters"))
    await api.open()
    try:
        await make_objects(api, _NAMESPACE)
        user, log = plane.kubeconfig("operator", "system:masters"), folder / "operator.log"
        # A busy machine alone shall not cost the lead.
        with operator_process(user, "operator", _NAMESPACE, log, SHIFT_LEASE_SECONDS="15") as operator:
            tally = await check_all(api, _NAMESPACE, SMALLEST, chosen, AT_ONCE, good=True)
            removed = await removals(api, _NAMESPACE, scale)
            traces = [line for line in operator.log.splitlines() if "reconcile failed" in line]
    finally:
        await api.close()
    problems = [*tally.problems, *removed.problems, *traces]
    problems += [f"{name}: no value was accepted" for name in tally.never_accepted]
    notes = (f"{len(chosen)} of {count} properties", str(tally), f"removed from a full spec: {removed}", *problems)
    return Outcome(tally.cases + removed.cases, "cases", len(problems), notes)


async def removals(api: ApiClient, namespace: str, scale: float = 1.0) -> Tally:
    """Of everything that the example has and that may be missing."""
    tally, base = Tally(), example("fullspec")["spec"]
    base["autoscaling"] = {**base["autoscaling"], "max": 2, "windows": {"scaleOutSeconds": 5}}
    base["disruption"] = {"maxUnavailable": 0}
    base["rollout"] = {"drainSeconds": 5, "progressDeadlineSeconds": 100, "restartedAt": "2026-01-02T03:04:05Z"}
    chosen = list(_without_each(base))
    chosen = chosen[: max(1, round(len(chosen) * scale))]
    subject = Subject(api, namespace, "fullspec", base, tally)
    await subject.create(good=False)
    for number, (prop, without) in enumerate(chosen):
        twin = Subject(api, namespace, f"twin{number}", without, tally)
        await subject.check_removal(prop, without, twin)
    await subject.delete()
    return tally


def _without_each(base: Schema) -> Iterator[tuple[Property, Schema]]:
    for prop in properties(spec_schema()):
        if prop.required or ITEM in prop.path or KEY in prop.path:
            continue
        made = copy.deepcopy(base)
        here = made
        for step in prop.path[:-1]:
            here = here.get(step, {})
        if here.pop(prop.path[-1], None) is not None:
            yield prop, made

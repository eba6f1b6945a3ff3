"""kopf as an event source, and nothing else of it: no finalizers, no annotations, no handlers that hold state."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator
from typing import Any

import kopf
from shiftprotos import contract

from shiftoperator.cluster import Cluster
from shiftoperator.errors import TransientError, UserError
from shiftoperator.handlers.controller import Controller
from shiftoperator.names import Key
from shiftoperator.settings import Settings

log = logging.getLogger(__name__)

# A whole number: the API server takes no other.
WATCH_SECONDS = 300
SWEEP_SECONDS = 30.0


class EndlessBackoffs:
    """Delays that never run out: with kopf's own list the process ends after a minute without an API server."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.5, 1.0, 2.0, 4.0, 8.0), itertools.repeat(10.0))


class _NoDiffs(kopf.AnnotationsDiffBaseStorage):
    """We have no handlers of changes: without this every event is copied whole for them."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence({})


def operator_settings(settings: Settings) -> kopf.OperatorSettings:
    chosen = kopf.OperatorSettings()
    # Namespaces are named in our settings and the CRD is there before we start: no right to list either is needed.
    chosen.scanning.disabled = True
    chosen.posting.enabled = False
    chosen.persistence.diffbase_storage = _NoDiffs()
    chosen.networking.error_backoffs = EndlessBackoffs()
    chosen.networking.request_timeout = 30.0
    chosen.networking.connect_timeout = 5.0
    chosen.queueing.error_delays = EndlessBackoffs()
    chosen.watching.server_timeout = WATCH_SECONDS
    chosen.watching.client_timeout = WATCH_SECONDS + 30.0
    chosen.watching.connect_timeout = 5.0
    return chosen


def register(controller: Controller) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    generations: dict[str, int] = {}

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(contract.API_GROUP, contract.API_VERSION, contract.PLURAL, registry=registry)
    async def deployment_seen(event: Any, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        if event.get("type") == "DELETED":
            generations.pop(metadata["uid"], None)
        elif generations.get(metadata["uid"]) == metadata["generation"] and "deletionTimestamp" not in metadata:
            # Only the status changed, and that was us.
            return
        else:
            generations[metadata["uid"]] = metadata["generation"]
        controller.wake(Key(metadata["namespace"], metadata["name"]), event["object"])

    @kopf.on.event(
        "",
        "v1",
        "pods",
        registry=registry,
        labels={contract.LABEL_NAME: contract.RUNTIME_NAME, contract.LABEL_DEPLOYMENT: kopf.PRESENT},
    )
    async def pod_seen(event: Any, **_: Any) -> None:
        metadata = event["object"]["metadata"]
        controller.wake_known(Key(metadata["namespace"], metadata["labels"][contract.LABEL_DEPLOYMENT]))

    return registry


async def run(controller: Controller, settings: Settings) -> None:
    """Watches until the process is told to end."""
    try:
        await kopf.operator(
            registry=register(controller),
            settings=operator_settings(settings),
            standalone=True,
            clusterwide=settings.cluster_wide,
            namespaces=settings.watch_namespaces,
        )
    except (TransientError, UserError) as error:
        # As it ends, kopf takes every task of this loop for one of its own and raises what any of them failed with.
        log.info("a call failed while the watch ended: %s", error)


async def sweep(controller: Controller, cluster: Cluster, settings: Settings) -> None:
    """Lists all objects from time to time: kopf drops a watch for good when the API server refuses it once."""
    while True:
        for namespace in settings.watch_namespaces or ("",):
            try:
                for resource in await cluster.list(contract.KIND, namespace):
                    controller.notice(Key(resource["metadata"]["namespace"], resource["metadata"]["name"]))
            except (TransientError, UserError) as error:
                log.warning("cannot list namespace=%s: %s", namespace or "all", error)
        await asyncio.sleep(SWEEP_SECONDS)

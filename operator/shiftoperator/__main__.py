"""The process: command line, logging, leadership, probes."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import sys
import time
from importlib.metadata import version

from shiftprotos import contract

from shiftoperator import handlers
from shiftoperator import settings as configuration
from shiftoperator.cluster import Cluster, Election
from shiftoperator.errors import TransientError, UserError
from shiftoperator.metrics import Health, Metrics, OpsServer
from shiftoperator.reconcile import Reconciler
from shiftoperator.runtime_client import RuntimeClient
from shiftoperator.settings import Settings, SettingsError

log = logging.getLogger("shiftoperator")

_DESCRIPTION = """\
Watches ShiftDeployments and keeps what they ask for: pods that shift between tensor and sequence parallelism at every
step, their shift policy, and their number. Uses the pod's service account, or the cluster that KUBECONFIG names."""

_EXAMPLES = """\
examples:
  shift-operator                                      all namespaces
  SHIFT_WATCH_NAMESPACES=team-a shift-operator        one namespace, as far as Roles there allow
  KUBECONFIG=~/.kube/config SHIFT_NAMESPACE=default shift-operator     from a workstation that reaches pod addresses"""


def main() -> None:
    _parser().parse_args()
    try:
        settings = configuration.from_environment()
    except SettingsError as error:
        sys.exit(f"shift-operator: {error}")
    _configure_logging(settings)
    # What is loaded stays, so it need not be looked at: half of the 0.4 s that each collection takes of 500 resources.
    gc.freeze()
    try:
        asyncio.run(_serve(settings))
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, configuration.VARIABLES))
    variables = "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in configuration.VARIABLES.items())
    parser = argparse.ArgumentParser(
        prog="shift-operator",
        description=_DESCRIPTION,
        epilog=f"environment:\n{variables}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shift-operator {version('shift-operator')}")
    return parser


async def _serve(settings: Settings) -> None:
    metrics, health = Metrics(), Health()
    ops = OpsServer(settings.ops_port, metrics, health)
    ops.start()
    watched = ",".join(settings.watch_namespaces) or "all"
    log.info("starting namespaces=%s identity=%s ops_port=%d", watched, settings.identity, ops.port)
    cluster = await Cluster.connect()
    runtimes = RuntimeClient()
    election = Election(cluster, settings.namespace, settings.lease_name, settings.identity, settings.lease_seconds)
    reconciler = Reconciler(cluster.fenced(election.holds), runtimes, settings, metrics)
    controller = handlers.Controller(reconciler, metrics, settings.resync_seconds, settings.poll_seconds)
    beat = asyncio.create_task(_beat(health, election, settings), name="heartbeat")
    leader: asyncio.Task[None] | None = None
    sweep: asyncio.Task[None] | None = None
    try:
        await _wait_for_crd(cluster)
        leader = asyncio.create_task(election.run(controller.start, controller.stop), name="election")
        sweep = asyncio.create_task(handlers.sweep(controller, cluster, settings), name="sweep")
        watch = asyncio.create_task(handlers.run(controller, settings), name="watch")
        done, _ = await asyncio.wait({leader, sweep, watch, beat}, return_when=asyncio.FIRST_COMPLETED)
        # None of them ends by itself: kopf's does at SIGTERM, any other end is a fault to be seen.
        await _end(watch)
        for task in done:
            task.result()
    finally:
        await _end(leader, sweep, beat)
        await runtimes.close()
        await cluster.close()
        ops.stop()
        log.info("stopped")


async def _end(*tasks: asyncio.Task[None] | None) -> None:
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _wait_for_crd(cluster: Cluster) -> None:
    """The chart installs both; on a new cluster the CRD may be served a moment after we start."""
    while True:
        try:
            if await cluster.serves(contract.KIND):
                return
            log.warning("the CRD of %s is not installed yet", contract.KIND)
        except (TransientError, UserError) as error:
            log.warning("waiting for the API server: %s", error)
        await asyncio.sleep(1.0)


async def _beat(health: Health, election: Election, settings: Settings) -> None:
    while True:
        health.beat()
        # A standby is ready too: it must count as up in a rolling update.
        health.ready = time.monotonic() - election.last_contact < 2 * settings.lease_seconds
        await asyncio.sleep(1.0)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _configure_logging(settings: Settings) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s %(message)s")
    handler.setFormatter(_JsonLines() if settings.log_format == "json" else text)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # kopf tells of every event it passes on.
    for name in ("kopf.objects", "kopf.activities", "kopf._core"):
        logging.getLogger(name).setLevel(logging.WARNING)


if __name__ == "__main__":
    main()

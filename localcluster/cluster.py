#!/usr/bin/env python3
"""A real Kubernetes on this machine. `cluster.py up`, `down`, `status`, `images`, `volume`, `kubeconfig`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

if __package__ in (None, ""):
    # Run as a script: Python put this folder first on the path, where `images` and `errors` would shadow others.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from localcluster import bringup, cleanup, images, machine, report, storage
from localcluster.errors import ClusterError
from localcluster.lock import exclusive
from localcluster.settings import Settings, from_environment


def command_up(settings: Settings, _: argparse.Namespace) -> int:
    machine.require_root()
    with exclusive(settings):
        bringup.up(settings)
    return 0


def command_down(settings: Settings, _: argparse.Namespace) -> int:
    machine.require_root()
    started = time.monotonic()
    with exclusive(settings):
        cleanup.down(settings)
        left = cleanup.leftovers(settings)
    for line in left:
        print(f"left over: {line}", file=sys.stderr)
    if not left:
        print(f"down in {time.monotonic() - started:.1f} s; kept: built programs and images in {settings.cache}")
    return 1 if left else 0


def command_status(settings: Settings, _: argparse.Namespace) -> int:
    return report.status(settings)


def command_images(settings: Settings, arguments: argparse.Namespace) -> int:
    bringup.require_up(settings)
    for name in arguments.names or list(images.PROJECT_IMAGES):
        print(images.build_project_image(name, settings))
    return 0


def command_volume(settings: Settings, arguments: argparse.Namespace) -> int:
    bringup.require_up(settings)
    print(storage.create_volume(arguments.name, arguments.host_path, arguments.namespace, settings))
    return 0


def command_kubeconfig(settings: Settings, _: argparse.Namespace) -> int:
    print(settings.kubeconfig)
    return 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="cluster.py", description=__doc__)
    commands = result.add_subparsers(required=True, metavar="command")
    for name, function, text in (
        ("up", command_up, "start the cluster, building it first if needed"),
        ("down", command_down, "stop it and remove everything it made except caches"),
        ("status", command_status, "show each component; exit 0 only if all are healthy"),
        ("kubeconfig", command_kubeconfig, "print the path of the kubeconfig"),
    ):
        commands.add_parser(name, help=text).set_defaults(function=function)
    build = commands.add_parser("images", help="build the project's images and load them into the cluster")
    build.add_argument("names", nargs="*", metavar="name", help=f"of {sorted(images.PROJECT_IMAGES)}; default all")
    build.set_defaults(function=command_images)
    volume = commands.add_parser("volume", help="offer a folder of this machine to pods, read-only")
    volume.add_argument("name", help="name of the PersistentVolumeClaim")
    volume.add_argument("host_path", type=Path)
    volume.add_argument("--namespace", required=True)
    volume.set_defaults(function=command_volume)
    return result


def main() -> int:
    arguments = parser().parse_args()
    try:
        return int(arguments.function(from_environment(), arguments))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
    except subprocess.TimeoutExpired as error:
        print(f"error: CommandTimeout: `{error.cmd}` did not end in {error.timeout:.0f} s", file=sys.stderr)
    except BrokenPipeError:
        # The reader (`… | head`) has seen enough; without this Python complains once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())

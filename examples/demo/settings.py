"""What the demo applies and how long it waits."""

from __future__ import annotations

from localcluster.images import REPOSITORY

NAMESPACE = "shift-demo"
NAME = "gemma"
MANIFEST = REPOSITORY / "examples/gemma-270m.yaml"
CLIENT_POD = REPOSITORY / "examples/clients/pod.yaml"
CLIENT = REPOSITORY / "examples/clients/shift_client.py"
TARGET = f"dns:///{NAME}-headless.{NAMESPACE}.svc.cluster.local:9000"

READY_SECONDS = 240.0
BURST_SECONDS = 400.0  # at most; it ends when the second pod has worked
SECOND_POD_SECONDS = 90.0
SCALE_IN_SECONDS = 180.0
POLICY_SECONDS = 15.0

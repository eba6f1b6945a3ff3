"""What should exist for a ShiftDeployment, as plain objects."""

from shiftoperator.manifests.children import (
    SETTLE_SECONDS,
    Control,
    Rolling,
    children,
    controller_revision,
    deployment,
    singletons,
)
from shiftoperator.manifests.references import secrets_named
from shiftoperator.manifests.rendered import gpus_of, leaving_seconds_of, speaks_tls
from shiftoperator.manifests.template import (
    DRAIN_MARGIN_SECONDS,
    POD_FIELDS,
    POD_PARTS,
    arguments,
    pod_template,
    template_hash,
    template_hashes,
)

__all__ = [
    "DRAIN_MARGIN_SECONDS",
    "POD_FIELDS",
    "POD_PARTS",
    "SETTLE_SECONDS",
    "Control",
    "Rolling",
    "arguments",
    "children",
    "controller_revision",
    "deployment",
    "gpus_of",
    "leaving_seconds_of",
    "pod_template",
    "secrets_named",
    "singletons",
    "speaks_tls",
    "template_hash",
    "template_hashes",
]

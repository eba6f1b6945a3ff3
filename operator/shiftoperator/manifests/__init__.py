"""What should exist for a ShiftDeployment, as plain objects."""

from shiftoperator.manifests.children import (
    SETTLE_SECONDS,
    Control,
    children,
    controller_revision,
    deployment,
    singletons,
)
from shiftoperator.manifests.references import secrets_named
from shiftoperator.manifests.template import DRAIN_MARGIN_SECONDS, arguments, pod_template, template_hash

__all__ = [
    "DRAIN_MARGIN_SECONDS",
    "SETTLE_SECONDS",
    "Control",
    "arguments",
    "children",
    "controller_revision",
    "deployment",
    "pod_template",
    "secrets_named",
    "singletons",
    "template_hash",
]

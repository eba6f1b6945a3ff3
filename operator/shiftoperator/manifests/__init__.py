"""What should exist for a ShiftDeployment, as plain objects."""

from shiftoperator.manifests.children import children, controller_revision, singletons
from shiftoperator.manifests.template import arguments, pod_template, template_hash

__all__ = ["arguments", "children", "controller_revision", "pod_template", "singletons", "template_hash"]

"""The Kubernetes API, as far as this operator needs it. The only package that knows the client library."""

from shiftoperator.cluster.client import Cluster
from shiftoperator.cluster.lease import Election

__all__ = ["Cluster", "Election"]

"""Kubernetes operator for ShiftDeployment."""

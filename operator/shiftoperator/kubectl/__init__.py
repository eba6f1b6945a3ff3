"""`kubectl shift`: what a ShiftDeployment does and why, on a person's machine.

It knows the cluster only through the `kubectl` on PATH, and the service only through the resource: of the operator it
shares names and reasons.
"""

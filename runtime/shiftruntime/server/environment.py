"""What a process of this runtime is told by its environment: the one file that reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shiftprotos import contract


@dataclass(frozen=True)
class Environment:
    """Every environment variable this process reads."""

    control_token_file: Path | None = None
    control_tls_folder: Path | None = None
    termination_log: Path | None = None
    pod_name: str = ""

    @staticmethod
    def of(variables: Mapping[str, str]) -> Environment:
        """An empty variable counts as unset."""

        def path(name: str) -> Path | None:
            value = variables.get(name)
            return Path(value) if value else None

        return Environment(
            control_token_file=path(contract.ENV_CONTROL_TOKEN_FILE),
            control_tls_folder=path(contract.ENV_CONTROL_TLS_FOLDER),
            termination_log=path(contract.ENV_TERMINATION_LOG),
            pod_name=variables.get(contract.ENV_POD_NAME, ""),
        )

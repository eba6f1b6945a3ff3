"""The status schema of the CRD as a strict JSON Schema: what the API server would refuse or prune is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml

Object = dict[str, Any]
CRD_FILE = Path(__file__).resolve().parents[2] / "charts" / "shift" / "crds" / "shiftdeployments.yaml"

_BOUNDS = {"int32": 2**31, "int64": 2**63}
_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"


def status_validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(crd()["status"])


def crd() -> Object:
    """The strict schemas of `spec` and `status`."""
    parsed = yaml.safe_load(CRD_FILE.read_text())
    schema = parsed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return {part: strict(schema["properties"][part]) for part in ("spec", "status")}


def strict(schema: Object) -> Object:
    made = {name: value for name, value in schema.items() if not name.startswith("x-") and name != "format"}
    if schema.get("format") in _BOUNDS:
        bound = _BOUNDS[schema["format"]]
        made = {"minimum": -bound, "maximum": bound - 1, **made}
    if schema.get("format") == "date-time":
        made["pattern"] = _TIME
    if "properties" in schema:
        made["properties"] = {name: strict(child) for name, child in schema["properties"].items()}
        # The API server would prune it, and we would write it again for ever.
        made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        made["items"] = strict(schema["items"])
    return made


def problems(validator: jsonschema.Draft202012Validator, status: Object) -> list[str]:
    found = [f"{'.'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in validator.iter_errors(status)]
    return found + [f"{where}: the key {key!r} is there twice" for where, key in _repeated(status)]


def _repeated(status: Object) -> list[tuple[str, str]]:
    """Keys of lists that the API server keeps as maps."""
    found = []
    for where, name in (("conditions", "type"), ("pods", "name"), ("capacity", "gear")):
        keys = [item[name] for item in status.get(where, ())]
        found += [(where, key) for key in keys if keys.count(key) > 1]
    return found

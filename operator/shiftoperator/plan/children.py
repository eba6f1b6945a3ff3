"""Which objects to write and which to delete."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shiftprotos import contract

from shiftoperator import manifests, rollout
from shiftoperator.errors import NameConflictError
from shiftoperator.snapshot import Object, Snapshot, identity
from shiftoperator.spec import Spec

REVISIONS_KEPT = 5

_TEMPLATE_PATH = re.compile(r"\.?spec\.template((?:\.\w+|\[[^\]]*\])+)")
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)?")
_FACTORS = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


@dataclass(frozen=True)
class Changes:
    """Objects to create, to apply, each in order, and to delete."""

    apply: tuple[Object, ...]
    delete: tuple[Object, ...]
    # Only if there is none: its caller may give up on a write that arrives later, when pods have another key already.
    create: tuple[Object, ...] = ()


def revision(snapshot: Snapshot, spec: Spec, default_image: str) -> Object:
    """The stored pod template of this spec; a newly rendered one only where there is none."""
    template_hash = rollout.revisions(snapshot).target
    stored = rollout.stored(snapshot, template_hash)
    if stored is not None:
        template, number = stored["data"]["template"], stored["revision"]
    else:
        number = rollout.next_number(snapshot)
        template = manifests.pod_template(snapshot.key.name, spec, template_hash, default_image)
    return manifests.controller_revision(snapshot.resource, template_hash, template, number)


def changes(snapshot: Snapshot, desired: Iterable[Object]) -> Changes:
    """Raises NameConflictError before anything that is not ours would be overwritten."""
    wanted = tuple(desired)
    for child in wanted:
        if foreign(snapshot, *identity(child)):
            raise NameConflictError(*identity(child))
    create = tuple(c for c in wanted if c["kind"] == "Secret" and identity(c) not in snapshot.children)
    to_apply = tuple(c for c in wanted if c not in create and not _is_there(snapshot.children.get(identity(c)), c))
    return Changes(to_apply, _old_revisions(snapshot, wanted), create)


def in_words_of_the_spec(message: str) -> str:
    """A refusal of the Deployment that names the fields as the user wrote them."""
    return _TEMPLATE_PATH.sub(r"podTemplate\1", message)


def foreign(snapshot: Snapshot, kind: str, name: str) -> bool:
    """Whether the name is taken by an object of somebody else."""
    observed = snapshot.children.get((kind, name))
    return observed is not None and not _owned(observed, snapshot.resource["metadata"]["uid"])


def _is_there(observed: Object | None, desired: Object) -> bool:
    return contains(observed, desired) and _our_annotations(observed or {}) <= set(_annotations(desired))


def _our_annotations(observed: Object) -> set[str]:
    """That we set: others, such as those of a load balancer's controller, are none of ours to take away."""
    ours: set[str] = set()
    for entry in observed.get("metadata", {}).get("managedFields") or ():
        if entry.get("manager") == contract.FIELD_MANAGER and entry.get("operation") == "Apply":
            fields = entry.get("fieldsV1", {}).get("f:metadata", {}).get("f:annotations", {})
            ours |= {name.removeprefix("f:") for name in fields if name.startswith("f:")}
    return ours & set(_annotations(observed))


def _annotations(obj: Object) -> Object:
    found: Object = obj.get("metadata", {}).get("annotations") or {}
    return found


def contains(observed: Any, desired: Any) -> bool:
    """Whether everything desired is observed; what the API server added does not matter."""
    if observed is None:
        # The API server leaves out what is empty.
        return not desired
    if isinstance(desired, dict):
        return isinstance(observed, dict) and all(contains(observed.get(k), v) for k, v in desired.items())
    if isinstance(desired, list):
        same_length = isinstance(observed, list) and len(observed) == len(desired)
        return same_length and all(contains(o, d) for o, d in zip(observed, desired, strict=True))
    return bool(observed == desired) or _same_quantity(observed, desired)


def _same_quantity(one: Any, other: Any) -> bool:
    """The API server writes quantities its own way: 1000m becomes 1."""
    matches = [_QUANTITY.fullmatch(str(value)) for value in (one, other) if isinstance(value, (str, int))]
    if len(matches) != 2 or matches[0] is None or matches[1] is None:
        return False
    first, second = (float(match[1]) * _FACTORS[match[2] or ""] for match in matches if match is not None)
    return first == second


def _old_revisions(snapshot: Snapshot, wanted: tuple[Object, ...]) -> tuple[Object, ...]:
    present = {child["metadata"]["name"] for child in wanted if child["kind"] == "ControllerRevision"}
    good = rollout.revisions(snapshot).good
    in_use = {pod.template_hash for pod in snapshot.pods}
    idle = [r for r in snapshot.revisions() if r["metadata"]["name"] not in present and _hash_of(r) not in in_use]
    uid = snapshot.resource["metadata"]["uid"]
    # The good one may be wanted back, however old it is.
    owned = [r for r in idle if _owned(r, uid)]
    newest_first = sorted(owned, key=lambda r: (_hash_of(r) != good, -int(r.get("revision", 0))))
    return tuple(newest_first[REVISIONS_KEPT - 1 :])


def _owned(obj: Object, uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in obj["metadata"].get("ownerReferences", ()))


def _hash_of(stored: Object) -> str:
    return str(stored["metadata"].get("annotations", {}).get(contract.ANNOTATION_TEMPLATE_HASH, ""))

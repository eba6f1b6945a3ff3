"""Reads and writes of plain objects, each with a deadline; errors come out sorted by who can cure them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode
from urllib.request import getproxies

import aiohttp
from kubernetes.aio import client, config
from shiftprotos import contract

from shiftoperator.cluster.paths import group_path, path
from shiftoperator.errors import FORBIDDEN, REFUSED_BY_API, ConflictError, TransientError, UserError

Object = dict[str, Any]

REQUEST_SECONDS = 5.0
_UNKNOWN_FIELD = "failed to create typed patch object"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_ONLY_GROWS = "status.policyGeneration"
_JSON = "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


class Cluster:
    """One connection pool to the API server."""

    def __init__(self, api: client.ApiClient, may_write: Callable[[], bool] = lambda: True) -> None:
        self._api, self._may_write = api, may_write

    @classmethod
    async def connect(cls) -> Cluster:
        """With the pod's service account, else with the kubeconfig that KUBECONFIG names."""
        # Otherwise each call reads ~/.netrc, which is for passwords, and asks for proxies that are not there.
        session = {"trust_env": bool(getproxies())}
        configuration = client.Configuration(client_session_kwargs=session)
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(client.ApiClient(configuration))

    def fenced(self, may_write: Callable[[], bool]) -> Cluster:
        """The same connections; raises TransientError instead of a write that `may_write` forbids at that moment."""
        return Cluster(self._api, may_write)

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    # --- reads ---

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """None when there is no such object."""
        found = await self._call("GET", path(kind, namespace, name), missing_ok=True)
        return None if found is None else _slim(found)

    async def metadata(self, kind: str, namespace: str, name: str) -> Object | None:
        """Of an object, and nothing else of it: what a Secret holds is not our business. None when it is not there."""
        answer = await self._call("GET", path(kind, namespace, name), missing_ok=True, accept=_METADATA)
        return None if answer is None else answer["metadata"]

    async def list(self, kind: str, namespace: str, label_selector: str = "") -> list[Object]:
        query = {"labelSelector": label_selector} if label_selector else {}
        answer = await self._call("GET", path(kind, namespace), query=query) or {}
        # Items of a list carry neither kind nor version of their own.
        own = {"apiVersion": answer.get("apiVersion", ""), "kind": kind}
        return [_slim({**item, **own}) for item in answer.get("items", [])]

    async def serves(self, kind: str) -> bool:
        """Whether the API server knows this kind: its CRD is installed."""
        answer = await self._call("GET", group_path(kind), missing_ok=True)
        return any(resource["kind"] == kind for resource in (answer or {}).get("resources", []))

    # --- writes ---

    async def apply(self, obj: Object, dry_run: bool = False) -> Object:
        """Server-side apply; takes over fields that others changed. A dry run is strict and changes nothing."""
        where = path(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        query = {"fieldManager": contract.FIELD_MANAGER, "force": "true"}
        if dry_run:
            query |= {"dryRun": "All", "fieldValidation": "Strict"}
        return _slim(await self._call("PATCH", where, obj, query, _APPLY) or {})

    async def create(self, obj: Object) -> Object:
        query = {"fieldManager": contract.FIELD_MANAGER}
        return _slim(await self._call("POST", path(obj["kind"], obj["metadata"]["namespace"]), obj, query) or {})

    async def replace(self, obj: Object) -> Object:
        """Raises ConflictError if the object is not at its resourceVersion any more."""
        where = path(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"])
        # Without what we know of its managedFields, which is not all, the API server goes on with its own.
        metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
        query = {"fieldManager": contract.FIELD_MANAGER}
        return await self._call("PUT", where, {**obj, "metadata": metadata}, query) or {}

    async def patch_status(self, obj: Object, status: Object) -> Object | None:
        """None when the object is gone. The uid keeps a new object of the same name from another one's status."""
        where = path(obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"], "status")
        body = {"metadata": {"uid": obj["metadata"]["uid"]}, "status": status}
        query = {"fieldManager": contract.FIELD_MANAGER}
        answer = await self._call("PATCH", where, body, query, _MERGE, missing_ok=True)
        return None if answer is None else _slim(answer)

    async def patch_scale(self, obj: Object, replicas: int) -> None:
        """Through /scale, the one owner of replicas; refused if the object changed since the decision."""
        metadata = obj["metadata"]
        where = path(obj["kind"], metadata["namespace"], metadata["name"], "scale")
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "spec": {"replicas": replicas}}
        await self._call("PATCH", where, body, {"fieldManager": contract.FIELD_MANAGER}, _MERGE)

    async def annotate(self, obj: Object, annotations: dict[str, str | None]) -> None:
        """Sets these annotations and removes those that are None. The uid keeps another object of that name from it;
        an object that is gone is no error."""
        metadata = obj["metadata"]
        body = {"metadata": {"uid": metadata["uid"], "annotations": annotations}}
        where = path(obj["kind"], metadata["namespace"], metadata["name"])
        await self._call("PATCH", where, body, {"fieldManager": contract.FIELD_MANAGER}, _MERGE, missing_ok=True)

    async def delete(self, obj: Object) -> None:
        """Exactly this object as it was seen; one that is another by now, or changed if a version is named, stays."""
        metadata = obj["metadata"]
        preconditions = {key: metadata[key] for key in ("uid", "resourceVersion") if key in metadata}
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
        where = path(obj["kind"], metadata["namespace"], metadata["name"])
        await self._call("DELETE", where, body, missing_ok=True)

    # --- transport ---

    async def _call(
        self,
        method: str,
        where: str,
        body: Object | None = None,
        query: dict[str, str] | None = None,
        content_type: str = _JSON,
        missing_ok: bool = False,
        accept: str = _JSON,
    ) -> Object | None:
        if method != "GET" and not self._may_write():
            raise TransientError(f"{method} {where}: not sent, this process does not lead any more")
        headers = {"Accept": accept, "Content-Type": content_type}
        url = self._api.configuration.host + where + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._api.update_params_for_auth(headers, [], ["BearerToken"], where, method, body)
                response = await self._api.call_api(method, url, headers, body, _request_timeout=REQUEST_SECONDS)
                text = (await response.read()).decode()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise TransientError(f"{method} {where}: {type(error).__name__} {error}".strip()) from error
        if response.status == 404 and missing_ok:
            return None
        if response.status >= 400:
            raise _refusal(response.status, text, f"{method} {where}", response.headers.get("Retry-After"))
        answer: Object = json.loads(text)
        return answer


def _slim(obj: Object) -> Object:
    """Of its managedFields, often the larger half of an object, what we ask for: which annotations we applied, and
    whether the replicas are ours."""
    entries = obj.get("metadata", {}).get("managedFields")
    if not entries:
        return obj
    ours = [{**e, "fieldsV1": _asked_for(e)} for e in entries if e.get("manager") == contract.FIELD_MANAGER]
    return {**obj, "metadata": {**obj["metadata"], "managedFields": ours}}


def _asked_for(entry: Object) -> Object:
    fields = entry.get("fieldsV1") or {}
    return {
        part: {field: fields[part][field]}
        for part, field in (("f:metadata", "f:annotations"), ("f:spec", "f:replicas"))
        if field in fields.get(part, {})
    }


def _refusal(status: int, text: str, call: str, retry_after: str | None) -> Exception:
    try:
        said = json.loads(text)
        message, causes = str(said.get("message", text)), (said.get("details") or {}).get("causes") or ()
    except (ValueError, AttributeError):
        message, causes = text, ()
    message = " ".join(message.split())[:600]
    # Of a leader that was, late: whoever leads now has stored a higher one.
    late = status == 422 and any(cause.get("field") == _ONLY_GROWS for cause in causes)
    if status == 409 or late:
        return ConflictError(f"{call}: {message}", delay_seconds=0.1)
    if status == 500 and _UNKNOWN_FIELD in message:
        # Not passing at all: a field that server-side apply does not know.
        return UserError(REFUSED_BY_API, f"the API server refused {call}: {message}")
    if status in (429, 500, 502, 503, 504) or status == 401:
        # 401 passes when the service account's token has been renewed.
        delay = float(retry_after) if retry_after and retry_after.isdigit() else 1.0
        return TransientError(f"{call}: {status} {message}", delay_seconds=delay)
    reason = FORBIDDEN if status == 403 else REFUSED_BY_API
    return UserError(reason, f"the API server refused {call}: {message}")

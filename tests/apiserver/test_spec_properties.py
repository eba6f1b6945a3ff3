"""A few properties of the spec with every kind of value, on objects that run. All of them:

python tests/campaign.py spec-properties
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from helpers.control_plane.apiclient import ApiClient
from helpers.control_plane.kubelet import Kubelet
from helpers.control_plane.operator import Operator
from helpers.control_plane.plane import ControlPlane
from helpers.spec_properties.campaigns import SMALLEST
from helpers.spec_properties.check import Tally, check_all
from helpers.spec_properties.objects import make_objects
from helpers.spec_properties.schema import properties, spec_schema

pytestmark = pytest.mark.timeout(240)

_PROPERTIES = 8
_AT_ONCE = 4
_SEED = 20261122


def test_values_are_refused_or_settle_and_leave_no_trace(
    plane: ControlPlane, kubelet: Kubelet, namespace: str, operator: Operator
) -> None:
    """Also ones that are added to the CRD: nothing here names any."""
    seed = int(os.environ.get("SHIFT_FUZZ_SEED", _SEED))
    plane.create_claim(namespace)
    user = plane.kubeconfig(f"user-of-{namespace}", "system:masters")
    chosen = random.Random(seed).sample(list(properties(spec_schema())), _PROPERTIES)

    async def run() -> Tally:
        api = ApiClient(user)
        await api.open()
        try:
            await make_objects(api, namespace)
            return await check_all(api, namespace, SMALLEST, chosen, _AT_ONCE, good=False)
        finally:
            await api.close()

    tally = asyncio.run(run())
    print(tally)
    assert tally.problems == []
    assert "reconcile failed" not in operator.log
    assert tally.cases >= _PROPERTIES

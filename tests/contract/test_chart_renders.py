"""What the chart renders, as a whole: a change of a template shows in review as what it changes in a cluster.

python tests/contract/test_chart_renders.py     writes the renders anew, to be read in the diff
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helpers, as pytest finds them

import pytest
from helpers.chart import rendered_text

GOLDEN = Path(__file__).resolve().parent / "golden"
RENEW = "python tests/contract/test_chart_renders.py"

CASES = {
    "default": (),
    "namespaced": ("--set", "watchNamespaces={team-a,team-b}"),
    "ha": ("--set", "replicas=2", "--set", "priorityClassName=system-cluster-critical"),
    "all": (
        *("--set", "replicas=2", "--set", "dashboard.create=true"),
        *("--set", "metrics.podMonitor=Always", "--set", "metrics.podMonitorLabels.release=prom"),
        *("--set", "alerts.prometheusRule=Always", "--set", "alerts.labels.release=prom"),
        *("--set", "metrics.fromNamespaces={monitoring,grafana}", "--set", "imagePullSecrets[0].name=registry"),
        *("--set", "serviceAccount.name=shift-bot", "--set", "serviceAccount.annotations.team=ml"),
        *("--set", "podAnnotations.a=b", "--set", "nodeSelector.pool=system", "--set", "image.tag=0.1.0"),
        *("--set", "tolerations[0].operator=Exists", "--set", "log.level=debug", "--set", "log.format=text"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_render_is_as_committed(name: str) -> None:
    assert rendered_text(*CASES[name]) == (GOLDEN / f"{name}.yaml").read_text(), f"renew with: {RENEW}"


def test_every_committed_render_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, arguments in CASES.items():
        (GOLDEN / f"{name}.yaml").write_text(rendered_text(*arguments))

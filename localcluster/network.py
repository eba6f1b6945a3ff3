"""The bridge, the forwarding rules and the sysctls: what `up` changes in the host's network, and its undoing."""

from __future__ import annotations

import ipaddress
import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from localcluster.errors import ClusterError
from localcluster.settings import BRIDGE, NETWORK_CANDIDATES, Network, Settings

CHAIN = "SHIFT-LOCALCLUSTER"
# Chains of this cluster: ours, those of kube-proxy and kubelet, those of the CNI plugins.
CHAIN_PREFIXES = ("KUBE-", "CNI-", CHAIN)
COMMAND_SECONDS = 30

# Set by us, by kubelet (it tunes the kernel at start), by kube-proxy or by the bridge plugin.
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
NEEDED_SYSCTLS = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}


def run(*command: str, stdin: str | None = None) -> str:
    """Runs a program to its end and returns what it printed; a failure quotes its complaint."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    if done.returncode != 0:
        raise ClusterError("CommandFailed", f"`{' '.join(command)}` ended with {done.returncode}: {done.stderr[-800:]}")
    return done.stdout


def load_or_choose(path: Path) -> Network:
    """The address plan of the running cluster, or a fresh one that overlaps nothing this host uses."""
    if path.exists():
        return Network(**json.loads(path.read_text()))
    network = choose(host_networks())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pod_cidr": network.pod_cidr, "service_cidr": network.service_cidr}))
    return network


def choose(taken: Iterable[ipaddress.IPv4Network]) -> Network:
    used = list(taken)
    for pods, services in NETWORK_CANDIDATES:
        if not any(ipaddress.IPv4Network(ours).overlaps(theirs) for ours in (pods, services) for theirs in used):
            return Network(pod_cidr=pods, service_cidr=services)
    raise ClusterError(
        "NetworksTaken", f"each of {NETWORK_CANDIDATES} overlaps a network of this host; free one or add a candidate"
    )


def host_networks() -> list[ipaddress.IPv4Network]:
    """Addresses, routes and name servers of the host, without the default route (it would overlap everything)."""
    found = []
    for link in json.loads(run("ip", "-json", "-4", "address")):
        for address in link["addr_info"] if link["ifname"] != BRIDGE else []:
            found.append(ipaddress.IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False))
    for route in json.loads(run("ip", "-json", "-4", "route")):
        if route["dst"] != "default" and route.get("dev") != BRIDGE:
            found.append(ipaddress.IPv4Network(route["dst"], strict=False))
    return found + [ipaddress.IPv4Network(server) for server in nameservers(Path("/etc/resolv.conf")) if "." in server]


def nameservers(resolv_conf: Path) -> list[str]:
    if not resolv_conf.exists():
        return []
    return re.findall(r"^nameserver\s+(\S+)", resolv_conf.read_text(), flags=re.MULTILINE)


def setup(settings: Settings, network: Network) -> None:
    if not Path("/proc/sys/net/bridge").exists():
        run("modprobe", "br_netfilter")
    record_sysctls(settings.state / "sysctls.json")
    for name, value in NEEDED_SYSCTLS.items():
        (Path("/proc/sys") / name).write_text(value)
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        prefix_length = ipaddress.ip_network(network.pod_cidr).prefixlen
        run("ip", "address", "add", f"{network.node_ip}/{prefix_length}", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")
    was_forwarding = json.loads((settings.state / "sysctls.json").read_text())["net/ipv4/ip_forward"] == "1"
    _forwarding_rules(network, was_forwarding)


def record_sysctls(path: Path) -> None:
    """Keeps the first values seen: a second `up` must not record what the first one set."""
    if not path.exists():
        values = {name: (Path("/proc/sys") / name).read_text().strip() for name in _existing_sysctls()}
        path.write_text(json.dumps(values, indent=2))


def restore_sysctls(path: Path) -> None:
    if path.exists():
        for name, value in json.loads(path.read_text()).items():
            target = Path("/proc/sys") / name
            if target.exists() and target.read_text().strip() != value:
                target.write_text(value)


def _existing_sysctls() -> list[str]:
    return [name for name in SYSCTLS if (Path("/proc/sys") / name).exists()]


def _forwarding_rules(network: Network, was_forwarding: bool) -> None:
    """Pods may speak to each other and outwards; nothing from outside the host starts a connection to a pod."""
    forward = [
        f"-A {CHAIN} -i {BRIDGE} -j ACCEPT",
        f"-A {CHAIN} -o {BRIDGE} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        f"-A {CHAIN} -o {BRIDGE} -j DROP",
    ]
    if not was_forwarding:
        # We switched forwarding on for the bridge; the host must not become a router for anybody else.
        forward.append(f"-A {CHAIN} -j DROP")
    masquerade = f"-A {CHAIN} -s {network.pod_cidr} ! -o {BRIDGE} -j MASQUERADE"
    lines = ["*filter", f":{CHAIN} -", *forward, "COMMIT", "*nat", f":{CHAIN} -", masquerade, "COMMIT", ""]
    run("iptables-restore", "--noflush", "--wait", "5", stdin="\n".join(lines))
    for table, hook in (("filter", "FORWARD"), ("nat", "POSTROUTING")):
        if f"-A {hook} -j {CHAIN}" not in run("iptables", "-w", "5", "-t", table, "-S", hook):
            run("iptables", "-w", "5", "-t", table, "-I", hook, "-j", CHAIN)


def foreign_chains() -> list[str]:
    """Chains of another Kubernetes: ours would mix with them, and `down` would remove them."""
    return sorted({name for name in _chains(run("iptables-save")) if name.startswith(("KUBE-", "CNI-"))})


def teardown() -> None:
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        for link in json.loads(run("ip", "-json", "link", "show", "master", BRIDGE)):
            _delete_link(link["ifname"])
        _delete_link(BRIDGE)
    for family in ("iptables", "ip6tables"):
        _remove_chains(family)


def _delete_link(name: str) -> None:
    """The kernel removes a pod's link by itself once the last process of its network namespace has ended."""
    try:
        run("ip", "link", "delete", name)
    except ClusterError:
        if Path(f"/sys/class/net/{name}").exists():
            raise


def _remove_chains(family: str) -> None:
    saved = run(f"{family}-save")
    script = removal_script(saved)
    if script:
        run(f"{family}-restore", "--noflush", "--wait", "5", stdin=script)


def removal_script(saved: str) -> str:
    """An iptables-restore input that deletes our chains, and the rules elsewhere that jump to them."""
    lines: list[str] = []
    table, chains, jumps = "", list[str](), list[str]()
    for line in saved.splitlines():
        if line.startswith("*"):
            table, chains, jumps = line, [], []
        elif line.startswith(":") and line[1:].startswith(CHAIN_PREFIXES):
            chains.append(line[1:].split()[0])
        elif line.startswith("-A "):
            jumps.extend(_deletion(line))
        elif line == "COMMIT" and (chains or jumps):
            # Declaring a chain flushes it, so that none of them refers to another when they are deleted.
            declared = [f":{chain} - [0:0]" for chain in chains]
            lines += [table, *declared, *jumps, *(f"-X {chain}" for chain in chains), "COMMIT"]
    return "\n".join([*lines, ""]) if lines else ""


def _deletion(rule: str) -> list[str]:
    chain, target = rule.split()[1], re.search(r" -[jg] (\S+)", rule)
    ours = target is not None and target.group(1).startswith(CHAIN_PREFIXES)
    return ["-D" + rule[2:]] if ours and not chain.startswith(CHAIN_PREFIXES) else []


def _chains(saved: str) -> list[str]:
    return re.findall(r"^:(\S+)", saved, flags=re.MULTILINE)


def leftovers() -> list[str]:
    found = [f"network link {BRIDGE}"] if Path(f"/sys/class/net/{BRIDGE}").exists() else []
    for family in ("iptables", "ip6tables"):
        names = sorted({name for name in _chains(run(f"{family}-save")) if name.startswith(CHAIN_PREFIXES)})
        found += [f"{family} chain {name}" for name in names]
    return found

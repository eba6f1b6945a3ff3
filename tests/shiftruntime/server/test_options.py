"""The command line: defaults, what it refuses and how it says so, and the last words of a process."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from shiftcore.layout import Gear
from shiftprotos import contract
from shiftruntime import log
from shiftruntime.__main__ import main
from shiftruntime.log import JsonFormatter, LogFormat, TextFormatter
from shiftruntime.server import termination
from shiftruntime.server.limits import ServerLimits
from shiftruntime.server.options import parse, parse_fetch
from shiftruntime.server.tls import TlsFiles
from shiftruntime.server.usage import UsageError, parse_size


def serve(*arguments: str, **variables: str):
    return parse(["serve", "models/gemma.gguf", *arguments], variables)


def _words(line: str) -> list[str]:
    return line.split()


def test_defaults_are_those_of_the_contract():
    options = serve()
    assert (options.port, options.control_port, options.ops_port) == (9000, 9001, 8080)
    assert (options.host, options.served_name, options.reflection) == ("127.0.0.1", "gemma", True)
    assert (options.engine.ranks, options.engine.base_gear) == (1, Gear(1, 1))
    assert options.environment.control_token_file is None


def test_everything_reaches_the_engine():
    options = serve(
        *_words("--ranks 4 --base-gear sp2tp2 --dtype float64 --exact --policy auto --threshold 64 --max-num-seqs 7"),
        *_words("--max-batched-tokens 512 --max-model-len 1024 --kv-memory 512Mi --served-name g --host ::"),
        *_words("--port 1 --control-port 2 --ops-port 3 --drain-seconds 4.5 --no-reflection --log-format json"),
        *_words("--tpot-target-ms 80 --calibration /var/costs.json"),
        SHIFT_CONTROL_TOKEN_FILE="/token",
        SHIFT_POD_NAME="pod-0",
        SHIFT_TERMINATION_LOG="",
    )
    engine = options.engine
    assert (engine.ranks, engine.base_gear, engine.dtype, engine.exact) == (4, Gear(2, 2), "float64", True)
    assert (engine.policy.threshold_tokens, engine.policy.generation) == (64, 0)
    assert (engine.max_num_seqs, engine.max_batched_tokens, engine.max_model_len) == (7, 512, 1024)
    assert engine.kv_memory_bytes == 512 * 2**20
    assert (engine.tpot_target_seconds, engine.calibration_file) == (0.08, "/var/costs.json")
    assert (options.served_name, options.host, options.drain_seconds) == ("g", "::", 4.5)
    assert (options.port, options.control_port, options.ops_port, options.reflection) == (1, 2, 3, False)
    assert str(options.environment.control_token_file) == "/token"
    assert (options.environment.pod_name, options.environment.termination_log) == ("pod-0", None)


def test_memory_and_dtype_of_the_cache_reach_the_engine():
    assert (serve().engine.kv_memory_percent, serve().engine.kv_cache_dtype) == (80, "auto")
    engine = serve(*_words("--kv-memory-percent 60 --kv-cache-dtype bfloat16 --no-prefix-cache")).engine
    assert (engine.kv_memory_percent, engine.kv_cache_dtype, engine.prefix_cache) == (60, "bfloat16", False)


def test_a_fetch_has_its_own_options():
    options = parse_fetch(_words("fetch hf://a/b --model-cache /c --limit 2Gi --control-port 7 --host ::"), {})
    assert (options.uri, options.cache, options.limit_bytes) == ("hf://a/b", "/c", 2**31)
    assert (options.control_port, options.host) == (7, "::")
    with pytest.raises(UsageError, match="--limit: 'much' is no size"):
        parse_fetch(_words("fetch hf://a/b --limit much"), {})
    assert serve("--offline").offline is True


@pytest.mark.parametrize(
    ("policy", "mode", "gear"),
    [("latency", "Latency", None), ("Throughput", "Throughput", None), ("tp2", "Auto", "tp2"), ("sp2", "Auto", "sp2")],
)
def test_policies(policy, mode, gear):
    held = serve("--ranks", "2", "--policy", policy).engine.policy
    assert (held.mode, held.gear) == (mode, gear)


@pytest.mark.parametrize(("dtype", "resolved"), [("auto", "float32"), ("float64", "float64")])
def test_exact_chooses_a_dtype_that_can_be_exact(dtype, resolved):
    assert serve("--exact", "--dtype", dtype).engine.dtype == resolved


REFUSED = [
    ("--calibration /f --no-calibration", ["--calibration /f", "--no-calibration"]),
    ("--log-level trace", ["'trace'", "'debug'"]),
    ("--ranks 0", ["--ranks", "0 is outside 1..64"]),
    ("--ranks two", ["--ranks", "'two'", "1..64"]),
    ("--base-gear sp4", ["--base-gear sp4", "4 ranks", "--ranks 4"]),
    ("--base-gear fast", ["--base-gear", "'fast'", "sp4tp2"]),
    ("--device cuda", ["cuda", "--device cpu"]),
    ("--device tpu", ["'tpu'", "'cpu'"]),
    ("--dtype int8", ["'int8'", "'bfloat16'"]),
    ("--exact --dtype bfloat16", ["bfloat16", "float32 or float64"]),
    ("--ranks 2 --policy sp4", ["sp4", "tp2, sp2"]),
    ("--threshold 0", ["0 is outside 1..1048576"]),
    ("--threshold 1048577", ["1048577 is outside"]),
    ("--policy latency --threshold 5", ["--threshold 5", "--policy auto"]),
    ("--kv-memory much", ["--kv-memory", "'much'", "512Mi"]),
    ("--kv-memory 12Ki", ["12Ki", "at least 1Mi"]),
    ("--kv-memory 1Gi --kv-memory-percent 50", ["1Gi says all", "remove --kv-memory-percent 50"]),
    ("--kv-memory-percent 5", ["5 is outside 10..95"]),
    ("--kv-cache-dtype fp8", ["fp8"]),
    ("--port 70000", ["70000 is outside 0..65535"]),
    ("--port 8080", ["--ops-port 8080", "--port"]),
    ("--drain-seconds nan", ["nan", "0..3600"]),
    ("--drain-seconds -1", ["-1", "0..3600"]),
    ("--max-num-seqs 0", ["--max-num-seqs", "0 is outside"]),
    ("--log-format xml", ["'xml'", "'json'"]),
    ("--sideways", ["--sideways"]),
    ("--rank 2", ["--rank"]),  # no abbreviations: a new option must not change what a command line means
]


@pytest.mark.parametrize(("line", "words"), REFUSED)
def test_a_refusal_names_value_and_fix(line, words):
    with pytest.raises(UsageError) as caught:
        serve(*line.split())
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_wrong_command_line_ends_with_2_and_leaves_its_reason(tmp_path, monkeypatch, capsys):
    log = tmp_path / "log"
    monkeypatch.setenv(contract.ENV_TERMINATION_LOG, str(log))
    assert main(["serve", "m.gguf", "--dtype", "int8"]) == 2
    words = json.loads(log.read_text())
    assert words["reason"] == "InvalidArgument"
    assert "'int8'" in words["message"]
    assert "shift-runtime: error: argument --dtype: invalid choice: 'int8'" in capsys.readouterr().err


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["serve", "--help"], {})
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("examples:", "ranks and gears:", "network:", "SHIFT_CONTROL_TOKEN_FILE", "--kv-memory SIZE"):
        assert word in text


@pytest.mark.parametrize(
    ("text", "size"), [("512Mi", 512 * 2**20), ("1.5G", 1_500_000_000), ("2GiB", 2**31), ("7", 7), ("3k", None)]
)
def test_sizes(text, size):
    if size is None:
        with pytest.raises(UsageError):
            parse_size(text)
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize("message", ["short", "x" * 10_000, "€" * 5000, '"\\\n' * 4000, "\ud800" * 3000])
def test_last_words_fit_the_kubelet(message):
    line = termination.encode("Reason", message)
    assert len(line) <= 4096
    assert message != "short" or json.loads(line) == {"reason": "Reason", "message": "short"}
    assert len(json.loads(line)["message"]) > 1000 or message == "short"


def test_an_unwritable_termination_log_is_no_second_failure(tmp_path, caplog):
    termination.write(tmp_path / "no" / "folder", "Reason", "message")
    assert "cannot write the termination log" in caplog.text


def record(**extra: object) -> logging.LogRecord:
    made = logging.LogRecord("shift", logging.INFO, "file", 1, "phase %s", ("load",), None)
    made.__dict__.update(extra)
    return made


def test_json_lines_carry_fields_and_the_pod():
    line = json.loads(JsonFormatter("pod-0").format(record(fields={"bytes": 3})))
    assert (line["message"], line["bytes"], line["pod"], line["level"]) == ("phase load", 3, "pod-0", "info")
    assert line["time"].endswith("Z")


def test_text_lines_read_as_sentences():
    assert TextFormatter().format(record()).endswith("INFO    phase load")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "60001"])
def test_a_target_that_no_step_can_have_is_refused(value):
    with pytest.raises(UsageError, match=r"--tpot-target-ms .* is outside \(0, 60000\]"):
        serve(f"--tpot-target-ms={value}")


def test_limits_and_tls_reach_the_server():
    options = serve(
        *_words("--max-message 2Mi --max-metadata 8Ki --max-streams 10 --max-waiting 5 --max-wait-seconds 20"),
        *_words("--max-request-seconds 90 --max-connection-age 0 --max-connection-grace 7 --keepalive-seconds 3"),
        *_words("--keepalive-timeout 2 --tls-cert c.pem --tls-key k.pem --tls-client-ca ca.pem --tls-control"),
        *_words("--sampling-defaults neutral --log-requests"),
    )
    assert options.limits == ServerLimits(2 * 2**20, 8 * 2**10, 10, 90.0, 20.0, 0.0, 7.0, 3.0, 2.0)
    assert options.engine.max_waiting_requests == 5
    assert options.tls == TlsFiles(Path("c.pem"), Path("k.pem"), Path("ca.pem"))
    assert (options.tls_control, options.model_defaults, options.log_requests) == (True, False, True)


def test_limits_have_defaults_and_tls_is_off():
    options = serve()
    assert (options.limits, options.tls, options.tls_control) == (ServerLimits(), None, False)
    assert (options.limits.grace_seconds, options.engine.max_waiting_requests) == (3600.0, 256)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--max-message 10", ["--max-message", "10 bytes", "1024.."]),
        ("--max-message huge", ["--max-message", "'huge' is no size"]),
        ("--max-metadata 2Gi", ["--max-metadata", "2Gi"]),
        ("--max-streams 0", ["--max-streams", "'0'", "1.."]),
        ("--max-waiting many", ["--max-waiting", "'many'", "1..65536"]),
        ("--max-wait-seconds 0", ["--max-wait-seconds", "'0'", "0.001..86400"]),
        ("--max-request-seconds nan", ["--max-request-seconds", "'nan'"]),
        ("--max-connection-age -1", ["--max-connection-age", "'-1'", "0..86400"]),
        ("--tls-cert c.pem", ["--tls-cert needs --tls-key"]),
        ("--tls-key k.pem", ["--tls-key needs --tls-cert"]),
        ("--tls-client-ca ca.pem", ["--tls-client-ca needs --tls-cert"]),
        ("--tls-control", ["--tls-control needs --tls-cert"]),
    ],
)
def test_limits_out_of_range_are_refused_by_name(line, words):
    with pytest.raises(UsageError) as caught:
        serve(*_words(line))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("models/gemma-3-270m-q4_k_m.gguf", "gemma-3-270m-q4_k_m"),
        ("models/Qwen3-0.6B", "Qwen3-0.6B"),
        ("models/Qwen3-0.6B/", "Qwen3-0.6B"),
        ("hf://Qwen/Qwen3-0.6B@v1", "Qwen3-0.6B"),
        ("hf://team/tiny/q4/tiny-q4.gguf", "tiny-q4"),
        ("s3://bucket/models/tiny-1.5/", "tiny-1.5"),
    ],
)
def test_a_folder_with_a_dot_in_its_name_keeps_all_of_it(model, name):
    """Qwen3-0.6B was served as Qwen3-0."""
    assert parse(["serve", model], {}).served_name == name


def test_a_model_that_is_nowhere_is_a_wrong_command_line():
    with pytest.raises(UsageError, match="unknown scheme 'gs'"):
        parse(["serve", "gs://bucket/tiny"], {})


def test_a_level_of_the_log_is_one_of_the_logging_module():
    assert serve("--log-level", "warning").log_level.number == logging.WARNING
    assert serve().log_level.number == logging.INFO


@pytest.mark.parametrize("client", ["httpx", "httpx2", "huggingface_hub", "urllib3"])
def test_no_client_of_http_tells_the_address_it_calls(client: str) -> None:
    """A signed address opens a private file, and the clients log each at INFO."""
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        log.setup(LogFormat.TEXT, stream=stream, level=logging.DEBUG)
        logging.getLogger(f"{client}._client").info("HTTP Request: GET https://cdn/x?X-Amz-Signature=abc")
        logging.getLogger("shiftruntime").info("said")
    finally:
        logging.basicConfig(level=logging.WARNING, handlers=before, force=True)
    assert stream.getvalue().endswith("said\n")
    assert "Signature" not in stream.getvalue()

"""The words of `shift-runtime --help`, and the checks that need only one value."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version

from shiftprotos import contract

from shiftruntime.engine.options import EngineOptions
from shiftruntime.log import LogLevel
from shiftruntime.server.cli_limits import add_limits, add_tls
from shiftruntime.server.fetch_cli import CACHE_HELP, add_fetch
from shiftruntime.server.openai.cli import add_openai
from shiftruntime.server.terminal.cli import add_verbs

_DESCRIPTION = """\
Serve a language model over gRPC, shifting between tensor and sequence parallelism from step to step."""

_EXAMPLES = """\
examples:
  shift-runtime serve gemma.gguf
      one rank on this machine; gRPC on 127.0.0.1:9000
  shift-runtime serve gemma.gguf --ranks 2 --threshold 64
      two ranks; steps of up to 64 tokens run in gear tp2, larger ones in sp2
  shift-runtime serve llama/ --ranks 4 --base-gear sp2tp2 --policy latency
      four ranks with the gears tp4 and sp2tp2, pinned to tp4
  shift-runtime serve gemma.gguf --ranks 2 --exact --dtype float64
      bit-equal results in every gear
  SHIFT_CONTROL_TOKEN_FILE=token shift-runtime serve gemma.gguf --host 0.0.0.0
      reachable from other machines; the control port asks for the token

  shift-runtime serve hf://Qwen/Qwen3-0.6B --ranks 2
      fetched first, resumed if it broke off, and checked against its sums at every start

environment:
  HF_TOKEN, AWS_…           credentials for hf:// and s3://, as their own tools read them
  SHIFT_CONTROL_TOKEN_FILE  file with the bearer token that the control port expects; without it that port
                            listens on loopback only
  SHIFT_CONTROL_TLS_FOLDER  folder with tls.crt, tls.key and ca.crt; the control port then asks for a certificate
                            that one of the authorities in ca.crt signed, and reads changed files again
  SHIFT_TERMINATION_LOG     where a failure leaves {"reason", "message"}
  SHIFT_POD_NAME            name of the pod in JSON log lines
"""


def build_parser(parser_class: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """The parser of `shift-runtime`; ``parser_class`` decides what a wrong command line does."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = parser_class(
        prog="shift-runtime", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=formatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"shift-runtime {version('shift-runtime')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=parser_class)
    serve = verbs.add_parser(
        "serve",
        help="serve one model",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    serve.add_argument(
        "model",
        metavar="MODEL",
        help="a .gguf file, a folder with config.json and safetensors, or where to fetch one: hf://OWNER/NAME[@REVISION]"
        "[/FILE.gguf] or s3://BUCKET/PREFIX",
    )
    serve.add_argument("--model-cache", metavar="DIR", help=CACHE_HELP)
    serve.add_argument(
        "--offline",
        action="store_true",
        help="ask no hub and no bucket: serve what `shift-runtime fetch` has fetched",
    )
    serve.add_argument(
        "--require-manifest",
        action="store_true",
        help="refuse a model without sums of its files; where there are some, they are checked before serving anyway",
    )
    manifest = verbs.add_parser(
        "manifest",
        help="write the sums of a model's files",
        description="Write SHA256SUMS into a model's folder, or FILE.sha256 beside a single file, as sha256sum has it.",
        allow_abbrev=False,
    )
    manifest.add_argument("model", metavar="MODEL", help="a .gguf file or a folder, known to be good")
    add_fetch(verbs, _integer(0, 65_535))
    add_verbs(verbs, (_add_layout, _add_engine))
    _add_layout(serve)
    _add_engine(serve)
    _add_network(serve)
    add_limits(serve)
    add_tls(serve)
    _add_operation(serve)
    return parser


def _add_layout(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ranks and gears")
    group.add_argument(
        "--ranks",
        type=_integer(1, contract.MAX_GPUS),
        default=1,
        metavar="P",
        help="processes of this pod (default: 1)",
    )
    group.add_argument(
        "--base-gear",
        metavar="GEAR",
        help="gear of highest throughput, for example sp2tp2; its sequence and tensor degrees multiply to P. It "
        "decides which gears there are (default: spP)",
    )
    group.add_argument(
        "--policy",
        default="auto",
        metavar="POLICY",
        help="auto: choose per step; latency: always the tp gear; throughput: always the base gear; or the name of a "
        "gear to pin (default: auto)",
    )
    group.add_argument(
        "--threshold",
        type=_integer(contract.MIN_THRESHOLD_TOKENS, contract.MAX_THRESHOLD_TOKENS),
        metavar="N",
        help="steps of at most N tokens run in the tp gear, larger ones in the base gear (default: as measured)",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where ranks compute; this version runs cpu (default)"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float64"),
        default="auto",
        help="auto: what is fastest on this machine (default)",
    )
    group.add_argument(
        "--exact", action="store_true", help="bit-equal results in every gear, slowly; float32 (its auto) or float64"
    )
    group.add_argument(
        "--quantization",
        choices=("auto", "none", "fp8", "int8", "gguf"),
        default="auto",
        help="refuse a model whose weights are stored otherwise; auto: take it as it is (default)",
    )
    group.add_argument(
        "--max-num-seqs",
        type=_integer(1, 65_536),
        default=EngineOptions.max_num_seqs,
        metavar="N",
        help=f"requests that run at once (default: {EngineOptions.max_num_seqs})",
    )
    group.add_argument(
        "--max-batched-tokens",
        type=_integer(1, contract.MAX_THRESHOLD_TOKENS),
        default=EngineOptions.max_batched_tokens,
        metavar="N",
        help=f"tokens of one step (default: {EngineOptions.max_batched_tokens})",
    )
    group.add_argument(
        "--max-model-len",
        type=_integer(2, 2**24),
        metavar="N",
        help="tokens of prompt and completion together (default: the model's own length, at most 8192 on cpu)",
    )
    group.add_argument(
        "--kv-memory", metavar="SIZE", help="KV cache of each rank, for example 512Mi (default: from what is free)"
    )
    group.add_argument(
        "--kv-memory-percent",
        type=_integer(contract.MIN_KV_MEMORY_PERCENT, contract.MAX_KV_MEMORY_PERCENT),
        metavar="N",
        help="KV cache of all ranks together, of the memory that weights and the largest steps leave free (default: "
        f"{EngineOptions.kv_memory_percent})",
    )
    group.add_argument(
        "--kv-cache-dtype",
        choices=("auto", "bfloat16"),
        default="auto",
        help="auto: as the model is computed (default); bfloat16 holds twice the tokens of float32, a little coarser",
    )
    group.add_argument(
        "--tpot-target-ms",
        type=float,
        metavar="MS",
        help="cut prompts into chunks such that a step with decodes ends within MS milliseconds, in the gear in which "
        "the chunk can be largest (default: chunks as large as --max-batched-tokens allows)",
    )
    group.add_argument(
        "--calibration",
        metavar="FILE",
        help="keep the measured costs of the gears in this JSON file, and read them back at the next start if model, "
        "options and machine are the same (default: measure at every start)",
    )
    group.add_argument(
        "--no-calibration",
        dest="calibrate",
        action="store_false",
        help="measure nothing at the start, which ends sooner: the threshold is --threshold or the default, and no "
        "capacity is known",
    )
    group.add_argument(
        "--no-prefix-cache",
        dest="prefix_cache",
        action="store_false",
        help="compute every prompt whole, instead of sharing the KV of equal beginnings within a tenant",
    )
    group.add_argument(
        "--no-overlap",
        dest="overlap",
        action="store_false",
        help="schedule a step only when the one before has ended, instead of while the ranks run it",
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument("--served-name", metavar="NAME", help="name of the model in requests (default: its file name)")
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 or :: to be reached from other machines (default: 127.0.0.1)",
    )
    for option, default, what in (
        ("--port", contract.INFERENCE_PORT, "gRPC inference, health and reflection"),
        ("--control-port", contract.CONTROL_PORT, "gRPC control, for the operator"),
        ("--ops-port", contract.OPS_PORT, "HTTP /livez /readyz /metrics"),
    ):
        group.add_argument(
            option, type=_integer(0, 65_535), default=default, metavar="N", help=f"{what}; 0: any (default: {default})"
        )
    add_openai(group, _integer(0, 65_535))
    group.add_argument(
        "--no-reflection", dest="reflection", action="store_false", help="do not describe the gRPC services to clients"
    )


def _add_operation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("operation")
    group.add_argument(
        "--drain-seconds",
        type=float,
        default=float(contract.DEFAULT_DRAIN_SECONDS),
        metavar="S",
        help=f"after SIGTERM running requests have this long to end (default: {contract.DEFAULT_DRAIN_SECONDS})",
    )
    group.add_argument(
        "--sampling-defaults",
        choices=("model", "neutral"),
        default="model",
        help="what a request gets that does not say: what the model's generation_config.json advises (default), or "
        "plain sampling at temperature 1",
    )
    group.add_argument(
        "--log-requests", action="store_true", help="a log line for every request that ended, with its trace id"
    )
    group.add_argument("--log-format", choices=("text", "json"), default="text", help="log lines on stderr")
    group.add_argument(
        "--log-level", choices=tuple(LogLevel), default=str(LogLevel.INFO), help="the least that is logged [info]"
    )


def _integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type whose error names the value and the range."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number in {low}..{high}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is outside {low}..{high}")
        return value

    return convert

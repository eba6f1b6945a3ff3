"""Entry of a rank process; started by the engine, never by a person."""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import socket
import sys

import torch
from shiftprotos import contract

from shiftruntime.errors import ShiftError
from shiftruntime.parallel.arena import supported
from shiftruntime.parallel.comm import Comm, CommError
from shiftruntime.parallel.gloo import GlooComm
from shiftruntime.parallel.shared_memory import SharedMemoryComm
from shiftruntime.worker.frames import FrameSocket
from shiftruntime.worker.messages import (
    AllocateKv,
    Attach,
    Failed,
    Hello,
    Load,
    Open,
    StepPlan,
    ToRank,
)
from shiftruntime.worker.rank import Rank

_PR_SET_PDEATHSIG = 1
_NO_MEMORY = "can't allocate memory"  # how torch says it, in a RuntimeError


def main() -> int:
    args = _parse(sys.argv[1:])
    _die_with_parent(args.parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # also sent to whole groups; the engine decides when a rank ends
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(args.threads)
    frames: FrameSocket[ToRank] = FrameSocket(socket.socket(fileno=args.socket_fd), ToRank)
    try:
        comm = _connect(args, frames)
        frames.send(Hello(args.rank))
        return _serve(Rank(args.rank, args.ranks, args.weights_fd, comm, frames.send), frames)
    except ShiftError as error:
        frames.send(Failed(error.reason, error.message))
    except CommError as error:
        frames.send(Failed(contract.REASON_RANK_FAILED, str(error)))
    except MemoryError as error:
        frames.send(Failed(contract.REASON_OUT_OF_MEMORY, f"rank {args.rank} ran out of memory: {error}"))
    except RuntimeError as error:
        if _NO_MEMORY not in str(error):
            raise
        frames.send(Failed(contract.REASON_OUT_OF_MEMORY, f"rank {args.rank} ran out of memory: {error}"))
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the engine is gone and with it the reason to run
    return 1


def _serve(rank: Rank, frames: FrameSocket[ToRank]) -> int:
    while True:
        match frames.receive():
            case Open() as message:
                rank.open(message)
            case Load() as message:
                rank.load(message)
            case Attach() as message:
                rank.attach(message)
            case AllocateKv() as message:
                rank.allocate(message)
            case StepPlan() as plan:
                rank.step(plan)
            case None:
                return 0


def _connect(args: argparse.Namespace, frames: FrameSocket[ToRank]) -> Comm:
    """Shared memory where plain stores are ordered, gloo elsewhere."""
    if supported():
        return SharedMemoryComm(
            args.arena_fd, args.rank, args.ranks, args.timeout_seconds, is_stopped=lambda: _is_closed(frames.socket)
        )
    return GlooComm(f"file://{args.rendezvous}", args.rank, args.ranks, args.timeout_seconds)


def _is_closed(sock: socket.socket) -> bool:
    """Whether the engine has hung up, also behind a message that is left where it is: the next step comes early."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _die_with_parent(parent: int) -> None:
    """Let the kernel end this process with the engine, also when the engine is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        sys.exit(0)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shiftruntime.worker", description=__doc__)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--arena-fd", type=int, required=True)
    parser.add_argument("--weights-fd", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout-seconds", type=float, default=10.0)
    parser.add_argument("--rendezvous", default="")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

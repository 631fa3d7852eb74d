"""Several processes of one command on this machine, and one voice for what they have to say.

Imports torch when something is called.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta

from dftune.environment import available_cores
from dftune.files import fingerprint
from dftune.stopped import STATUS as STOPPED

_LISTENING_S = 10
_SAVING_S = 300


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run ``dftune ARGUMENTS`` in so many processes, through torchrun's launcher: one node, a free port, no restarts.

    Each gets an equal share of the cores as ``OMP_NUM_THREADS``, unless that is set. When one fails, the others are
    ended. SIGTERM and SIGUSR1 are passed on; the processes then have 300 s to save and to end, or what the variable
    ``TORCH_ELASTIC_SHUTDOWN_TIMEOUT`` says.

    Returns:
        0, or the exit status of the process that failed first; 128 + the number of a signal that ended it or this one,
        but 75 where this one was asked to stop.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it repeats what the processes said
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // num_processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_S))
    with tempfile.TemporaryDirectory(prefix="dftune-launch-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "dftune", *arguments)
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
        except SignalException as error:
            return STOPPED if error.sigval in (signal.SIGTERM, signal.SIGUSR1) else 128 + int(error.sigval)
    return 0


def first_to_say(message: str) -> bool:
    """Whether this process is the first of those launched together to say this; True where nobody can be asked.

    An error that all of them meet is then said once. The others wait a moment, since the first that ends has the
    rest ended.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    import torch.distributed as dist  # noqa: PLC0415

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(  # type: ignore[attr-defined]
            address, port, is_master=False, timeout=timedelta(seconds=_LISTENING_S)
        )
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if store.add(f"dftune/said/{restart}/{fingerprint(message)}", 1) == 1:
            return True
    except (KeyError, RuntimeError):
        return True
    time.sleep(1)
    return False

"""SLURM from Debian's packages on this machine: a controller, nodes on ports of their own, munge.

It is started in a temporary folder as root, and nothing of it is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONFIG = """
ClusterName=robustdd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,defer
KillWait=5
MessageTimeout=10
SlurmdTimeout=10
ReturnToService=2
MinJobAge=300
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n[1-{nodes}] NodeAddr=127.0.0.1 NodeHostname={host} Port={ports} CPUs=1 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why SLURM cannot be started here; "" where it can."""
    absent = [name for name in PROGRAMS if _found(name) is None]
    if absent:
        return f"{', '.join(absent)} missing; apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "its daemons are started as root"


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Daemons:
    """A cluster of a few nodes on loopback; a context manager.

    `environ` is for the processes that are to use it.
    """

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder, self.nodes = folder, nodes
        # A requeued job waits as long as credentials live, 5 s at least.
        self.environ = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Daemons:
        folder = self.folder
        for name in ("munge", "state"):
            (folder / name).mkdir()
        (folder / "munge").chmod(0o700)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        ports = _free_ports(self.nodes + 1)
        text = CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            folder=folder,
            nodes=self.nodes,
            port=ports[0],
            ports=",".join(map(str, ports[1:])),
        )
        (folder / "slurm.conf").write_text(text)
        munge = folder / "munge"
        try:
            self._start(
                "munged",
                "--foreground",
                "--force",
                f"--key-file={key}",
                f"--socket={folder / 'munge.socket'}",
                f"--pid-file={munge / 'pid'}",
                f"--log-file={munge / 'log'}",
                f"--seed-file={munge / 'seed'}",
            )
            _until((folder / "munge.socket").exists, "munged")
            self._start("slurmctld", "-D", "-c")
            for node in range(1, self.nodes + 1):
                self._start("slurmd", "-D", "-N", f"n{node}")
            states = ("sinfo", "--noheader", "--Node", "--format=%T")
            _until(lambda: self.ask(*states).split() == ["idle"] * self.nodes, "slurmd")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, program: str, *words: str) -> None:
        path = _found(program)
        assert path is not None
        with (self.folder / f"{program}.out").open("ab") as out:
            self._processes.append(
                subprocess.Popen(
                    [path, *words],
                    env={**os.environ, **self.environ},
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

    def ask(self, *words: str) -> str:
        """The output of a command of SLURM; "" if it fails."""
        done = subprocess.run(
            words, capture_output=True, text=True, env={**os.environ, **self.environ}, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def jobs(self) -> dict[str, str]:
        """The jobs that have not ended, and their states."""
        lines = self.ask("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def until_idle(self) -> None:
        """Wait until all jobs have ended, as they must by themselves."""
        _until(lambda: not self.jobs(), "the end of all jobs")

    def __exit__(self, *_: object) -> None:
        if len(self._processes) > 1:
            self.ask("scancel", "--full", "--signal=KILL", "--user=root")
            self.ask("scancel", "--user=root")
            with contextlib.suppress(AssertionError):
                _until(lambda: not self.jobs(), "jobs", 60)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def left(self) -> list[str]:
        """Command lines of processes that belong to it, also of its jobs."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                if str(self.folder).encode() in content and int(path.parent.name) != os.getpid():
                    found.append(
                        (path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
        return found


def _until(true, what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not in {seconds} s"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_:
        sockets = [open_.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]

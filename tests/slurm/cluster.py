"""A real Slurm on this machine: munged, slurmctld and two slurmd of their own names and ports, as child processes.

What it needs: Debian's slurm-wlm and munge, and root, since slurmd starts tasks for users and InternLM resolves
node names through /etc/hosts. With accounting also slurmdbd, and a mariadbd of its own on a socket in its folder.
Nothing of a Slurm or a database that the machine may have already is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from filelock import FileLock

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
ACCOUNTING = ("slurmdbd", "sacctmgr", "sacct", "mariadbd")
SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")  # of Debian's mariadb-server-core
HOSTS = Path("/etc/hosts")
TASKS = 2  # CPUs and fake GPUs of a node
START_SECONDS = 60.0
STOP_SECONDS = 30.0


def missing(*, accounting: bool = False) -> str:
    """Why no cluster can be started here; "" if one can."""
    lacking = [name for name in PROGRAMS + ACCOUNTING * accounting if not shutil.which(name)]
    if lacking:
        packages = "slurm-wlm, munge" + ", slurmdbd, mariadb-server-core" * accounting
        return f"{', '.join(lacking)} not installed (Debian: {packages})"
    return "" if os.geteuid() == 0 else "slurmd and /etc/hosts need root"


UNACCOUNTED = """\
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none"""
ACCOUNTED = """\
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
AccountingStorageTRES=gres/gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
MinJobAge=2"""
DATABASE = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


class Cluster:
    """Two nodes of two tasks each. `environment` leads Slurm's commands to it.

    With `accounting`, as on most real clusters, memory is a resource too, and the controller soon forgets a job.
    """

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        self.folder = folder
        self.accounting = accounting
        self.tag = f"acc{os.getpid()}" + "db" * accounting
        self.nodes = [f"{self.tag}-1", f"{self.tag}-2"]
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Returns once both nodes are idle. Raises RuntimeError with the logs' last lines if they do not get there."""
        self._write()
        _edit_hosts(self.tag, [f"127.0.0.1 {node} # {self.tag}" for node in self.nodes])
        key, munge = self.folder / "munge.key", self.folder / "munge.socket"
        munge_files = [f"--{name}={self.folder / f'munge.{name}'}" for name in ("pid-file", "log-file", "seed-file")]
        self._run("munged", "--foreground", "--force", f"--socket={munge}", f"--key-file={key}", *munge_files)
        self._wait(munge.exists)
        if self.accounting:
            self._start_database()
            self.start_accounting()
            self._wait(lambda: self.ask("sacctmgr", "--immediate", "add", "cluster", self.tag))
        self.start_controller()
        for node in self.nodes:
            self._run("slurmd", "-D", "-N", node, name=node)
        self._wait(lambda: self.states() == {"idle"})

    def start_controller(self) -> None:
        (self.folder / "state").mkdir(exist_ok=True)
        self._run("slurmctld", "-D", "-i")

    def forget(self) -> None:
        """The controller knows no job any more, as some minutes after a job's end."""
        self.stop_controller()
        shutil.rmtree(self.folder / "state")
        self.start_controller()
        self._wait(lambda: self.states() == {"idle"})

    def stop_controller(self) -> None:
        """The controller falls silent; jobs go on."""
        _end(self.started.pop("slurmctld"))

    def start_accounting(self) -> None:
        self._run("slurmdbd", "-D")

    def stop_accounting(self) -> None:
        """The accounting falls silent; the controller keeps what it has to say until it is back."""
        _end(self.started.pop("slurmdbd"))

    def _start_database(self) -> None:
        """Without grant tables, so without passwords: its socket is all that leads to it."""
        data, socket_file = self.folder / "database", self.folder / "database.socket"
        data.mkdir()
        options = ["--no-defaults", "--user=root", f"--datadir={data}", "--innodb-log-file-size=4M"]
        tables = "create database mysql;\nuse mysql;\n" + SYSTEM_TABLES.read_text()
        subprocess.run(["mariadbd", *options, "--bootstrap"], input=tables, capture_output=True, text=True, check=True)
        self.environment["MYSQL_UNIX_PORT"] = str(socket_file)
        files = [f"--socket={socket_file}", f"--pid-file={self.folder / 'database.pid'}"]
        self._run("mariadbd", *options, *files, "--skip-networking", "--skip-grant-tables")
        self._wait(socket_file.exists)

    def states(self) -> set[str]:
        """States of the nodes, in sinfo's short words."""
        return set(self.ask("sinfo", "--noheader", "--Node", "--format=%t").split())

    def ask(self, *command: str) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout

    def restore(self) -> None:
        """No jobs, both nodes idle."""
        self.ask("scancel", "--signal=KILL", "--full", "--user=root")
        self.ask("scancel", "--user=root")
        for node in self.nodes:
            self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self._wait(lambda: self.states() == {"idle"} and not self.ask("squeue", "--noheader"))

    def stop(self) -> None:
        """End what was started, and take the names out of /etc/hosts again."""
        try:
            if "slurmctld" in self.started:
                self.ask("scancel", "--user=root")
            for name in reversed(list(self.started)):
                _end(self.started.pop(name))
        finally:
            _edit_hosts(self.tag, [])

    def _write(self) -> None:
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        controller, database, *ports = _free_ports(2 + len(self.nodes))
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={TASKS} RealMemory=8000 Gres=gpu:{TASKS} State=UNKNOWN"
            for node, port in zip(self.nodes, ports, strict=True)
        )
        for number in range(TASKS):
            (self.folder / f"gpu{number}").symlink_to("/dev/null")  # slurmd wants a device there
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{TASKS - 1}]\n")
        if self.accounting:
            kind = ACCOUNTED.format(folder=self.folder, port=database)
            (self.folder / "slurmdbd.conf").write_text(
                DATABASE.format(folder=self.folder, port=database, host=socket.gethostname())
            )
            (self.folder / "slurmdbd.conf").chmod(0o600)
        else:
            kind = UNACCOUNTED
        (self.folder / "slurm.conf").write_text(
            f"""\
ClusterName={self.tag}
SlurmctldHost={socket.gethostname()}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
{kind}
JobCompType=jobcomp/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
KillWait=2
SlurmdTimeout=30
{nodes}
PartitionName=test Nodes={",".join(self.nodes)} Default=YES MaxTime=INFINITE State=UP
"""
        )

    def _run(self, program: str, *arguments: str, name: str = "") -> None:
        name = name or program
        with (self.folder / f"{name}.log").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [shutil.which(program) or program, *arguments],
                env=os.environ | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, ready) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            dead = [name for name, process in self.started.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(f"{f.name}: {f.read_text()[-800:]}" for f in sorted(self.folder.glob("*.log")))
                raise RuntimeError(
                    f"the Slurm cluster is not ready; ended: {dead or 'nothing'}; nodes: {self.states()}\n{logs}"
                )
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _edit_hosts(tag: str, lines: list[str]) -> None:
    """Replace the lines marked with `tag`; in place, since containers mount the file."""
    with FileLock(Path(tempfile.gettempdir()) / "acceptance-hosts.lock"):
        kept = [line for line in HOSTS.read_text().splitlines() if not line.endswith(f"# {tag}")]
        HOSTS.write_text("\n".join([*kept, *lines]) + "\n")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

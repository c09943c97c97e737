"""Finds processes in Linux's /proc, kills them, and measures their memory."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, identified beyond the reuse of its number."""

    pid: int
    started: str  # in ticks since the start of the system

    def is_alive(self):
        return find(self.pid) == self

    def kill(self):
        """Send SIGKILL. Returns whether the process was alive."""
        try:
            # the descriptor stays with this process even if the number is used again
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.is_alive():
                return False
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)

    def rss_mb(self):
        """Resident memory in 10**6 bytes, or None if the process has ended."""
        try:
            pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return None
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def stat(pid):
    """The fields of /proc/PID/stat behind the name, from the state on; None if the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if not fields or fields[0] in "ZX" else fields


def find(pid):
    """The process with that number, or None if it has ended."""
    fields = stat(pid)
    return Process(pid, fields[19]) if fields else None


def arguments(pid):
    """The command line of a process; empty if it has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [word.decode(errors="replace") for word in words[:-1]]


def in_groups(groups, is_wanted):
    """The processes of these process groups whose arguments are wanted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        fields = stat(pid)
        if fields and int(fields[2]) in groups and is_wanted(arguments(pid)):
            found.append(Process(pid, fields[19]))
    return sorted(found, key=lambda process: process.pid)

#!/usr/bin/env python3
"""Runs suites of others against redis-server and against `pointsman up` (a master, two replicas, a proxy), and compares
which of their tests pass.

    compat.py [--fast] [--pointsman FILE] [--cache DIR] [SUITE ...]

Suites come from apt (Redis' own) and PyPI, by name, and are kept in the cache folder. Both sides start empty for each
suite, with DEBUG and protected settings allowed and no persistence. A difference is a test that passes directly and not
through pointsman; it fails the run unless known.tsv gives its reason. What differs is tried twice more, since a few tests race with
any further hop.

Ends with 0 without unknown differences, 1 with some, 2 for wrong usage, 77 where a suite cannot be fetched.
"""

import argparse
import ctypes
import pathlib
import signal
import socket
import subprocess
import sys
import time

import suites

HERE = pathlib.Path(__file__).resolve().parent
SETTINGS = {"enable-debug-command": "yes", "enable-protected-configs": "yes", "save": ""}
START_DEADLINE_S = 60
END_DEADLINE_S = 30
TRIES = 3


PR_SET_PDEATHSIG = 1


def dies_with_us():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One side of the comparison, for the time of a `with`; `port` is where its clients connect."""

    def __init__(self, command, port, log):
        self.command, self.port, self.log = command, port, log

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            preexec_fn=dies_with_us)
        deadline = time.monotonic() + START_DEADLINE_S
        while not self.answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.__exit__()
                sys.exit(f"{self.command[0]} does not start: see {self.log}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as client:
                client.settimeout(5)
                client.sendall(b"*3\r\n$3\r\nSET\r\n$6\r\ncompat\r\n$1\r\n1\r\n*1\r\n$8\r\nFLUSHALL\r\n")
                said = client.recv(64)
                return said.startswith(b"+OK")
        except OSError:
            return False


def direct(folder):
    port = free_port()
    data = folder / "direct"
    data.mkdir(parents=True, exist_ok=True)
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data)]
    for key, value in SETTINGS.items():
        command += ["--" + key, value]
    return Server(command, port, folder / "direct.log")


def through(folder, pointsman):
    port = free_port()
    command = [str(pointsman), "up", "--dir", str(folder / "up"), "--listen", f"127.0.0.1:{port}"]
    for key, value in SETTINGS.items():
        command += ["--redis", f"{key}={value}"]
    return Server(command, port, folder / "up.log")


def known_differences():
    """(suite, test) -> whether it is run, and the reason."""
    lines = (HERE / "known.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return {(suite, test): (how, reason) for suite, test, how, reason in rows}


def differences(directly, throughout):
    return sorted(test for test, ended in directly.items() if ended == "passed" and throughout.get(test) != "passed")


def compare(suite, fast, pointsman, cache):
    """Runs one suite on both sides; gives the results of both and which tests differ."""
    logs = cache / "logs" / suite.name
    logs.mkdir(parents=True, exist_ok=True)
    with direct(logs) as server:
        directly = suite.run(server.port, logs / "directly", fast, None)
    known = {test: how for (name, test), (how, _) in known_differences().items() if name == suite.name}
    skipped = [test for test, how in known.items() if how == "skip"]
    throughout, again = {}, None
    for attempt in range(1, TRIES + 1):
        with through(logs, pointsman) as server:
            for test, ended in suite.run(server.port, logs / f"through-{attempt}", fast, again, skipped).items():
                if throughout.get(test) != "passed":
                    throughout[test] = ended
        again = [test for test in differences(directly, throughout) if test not in known]
        if not again:
            break
    return directly, throughout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="less than a minute: a part of each suite that has one")
    parser.add_argument("--pointsman", type=pathlib.Path, default=HERE.parents[1] / "target/release/pointsman")
    parser.add_argument("--cache", type=pathlib.Path, default=HERE.parents[1] / "target/compat")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="of: " + " ".join(suites.ALL))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    unknown = [name for name in given.suites if name not in suites.ALL]
    if unknown:
        parser.error(f"no such suite: {' '.join(unknown)}; there are {' '.join(suites.ALL)}")
    names = given.suites or [name for name, suite in suites.ALL.items() if not given.fast or suite.fast]
    known, failed = known_differences(), False
    cache = given.cache.resolve()
    table = []
    for name in names:
        suite = suites.ALL[name]
        try:
            suite.fetch(cache)
        except suites.Unreachable as error:
            print(f"{name} cannot be fetched: {error}")
            return 77
        directly, throughout = compare(suite, given.fast, given.pointsman.resolve(), cache)
        differ = differences(directly, throughout)
        count = lambda results: sum(ended == "passed" for ended in results.values())
        table.append((name, count(directly), count(throughout), len(differ)))
        failed |= count(directly) == 0
        for test in differ:
            _, reason = known.get((name, test), (None, None))
            failed |= reason is None
            print(f"{name}: {test}: {reason or 'UNKNOWN: passes directly, not through pointsman'}")
    print(f"\n{'suite':<12}{'directly':>10}{'through pointsman':>20}{'differ':>8}")
    for name, directly, throughout, differ in table:
        print(f"{name:<12}{directly:>10}{throughout:>20}{differ:>8}")
    print(f"logs: {cache / 'logs'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

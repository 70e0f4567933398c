"""The suites: where they come from, how they are run, how their results are read. A result is a dictionary from a
test's name to `passed`, `failed` or `skipped`."""

import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent


class Unreachable(Exception):
    """What a suite consists of cannot be fetched from here."""


def fetched(command, cwd=None):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise Unreachable(f"{command[0]}: {last}")


class Tcl:
    """Redis' own suite, from the source package of the distribution, against an external server, a unit at a time."""

    name, fast = "redis-tcl", True
    FAST = ["protocol", "keyspace", "type/incr", "type/hash", "multi", "pubsub", "quit", "tracking"]
    UNITS = """dump auth protocol keyspace scan info info-command type/string type/incr type/list type/list-2 type/list-3
        type/set type/zset type/hash type/stream type/stream-cgroups sort expire other multi quit acl latency-monitor
        pubsub pubsubshard slowlog scripting functions introspection introspection-2 limits bitops bitfield geo
        hyperloglog lazyfree maxmemory memefficiency pause querybuf tracking networking violations""".split()
    UNIT_LIMIT_S = 180
    ENDED = {"ok": "passed", "err": "failed", "exception": "failed", "ignore": "skipped", "skip": "skipped"}

    def fetch(self, cache):
        self.folder = cache / "redis"
        if (self.folder / "runtest").exists():
            return
        state, source = cache / "apt", cache / "source"
        for folder in ["lists/partial", "cache/archives/partial", "sources.list.d"]:
            (state / folder).mkdir(parents=True, exist_ok=True)
        source.mkdir(exist_ok=True)
        self.write_source_lists(state)
        options = {
            "Dir::Etc::sourcelist": state / "sources.list",
            "Dir::Etc::sourceparts": state / "sources.list.d",
            "Dir::State::lists": state / "lists",
            "Dir::Cache": state / "cache",
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", "-qq"] + [word for option in options.items() for word in ("-o", "=".join(map(str, option)))]
        fetched(apt + ["update"])
        fetched(apt + ["--download-only", "source", "redis"], source)
        archive = next(source.glob("redis_*.orig.tar.gz"), None)
        if archive is None:
            raise Unreachable("apt-get: the source package has no redis_*.orig.tar.gz")
        unpacked = cache / "redis.unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        fetched(["tar", "xzf", str(archive), "-C", str(unpacked), "--strip-components=1"])
        for program in ["redis-server", "redis-cli", "redis-benchmark", "redis-check-aof", "redis-check-rdb"]:
            (unpacked / "src" / program).symlink_to(shutil.which(program) or program)
        unpacked.rename(self.folder)

    @staticmethod
    def write_source_lists(state):
        """The machine's own package sources, but for source packages."""
        etc = pathlib.Path("/etc/apt")
        one_line = etc / "sources.list"
        text = one_line.read_text() if one_line.exists() else ""
        (state / "sources.list").write_text(re.sub(r"(?m)^deb ", "deb-src ", text))
        for given in etc.glob("sources.list.d/*.sources"):
            text = re.sub(r"(?m)^Types:.*", "Types: deb-src", given.read_text())
            (state / "sources.list.d" / given.name).write_text(text)

    def run(self, port, logs, fast, only, skipped=()):
        """Tests in `skipped` are not run: one that ends in the middle takes those after it with it."""
        logs.mkdir(parents=True, exist_ok=True)
        units = self.FAST if fast else self.UNITS
        if only is not None:
            units = [unit for unit in units if any(test.startswith(unit + ": ") for test in only)]
        results = {}
        for number, unit in enumerate(units):
            command = ["timeout", "-k", "5", str(self.UNIT_LIMIT_S), "./runtest", "--host", "127.0.0.1", "--port", str(port)]
            command += ["--baseport", str(21000 + (os.getpid() * 7 + number * 131) % 9000)]
            command += ["--durable", "--dont-clean", "--tags", "-slow"]
            for test in skipped:
                if test.startswith(unit + ": "):
                    command += ["--skiptest", test.removeprefix(unit + ": ")]
            path = unit if unit.startswith("integration/") else "unit/" + unit
            log = logs / (unit.replace("/", "_") + ".log")
            with open(log, "wb") as out:
                ended = subprocess.run(command + ["--single", path], cwd=self.folder, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
            # A unit leaves this behind even when it passes.
            subprocess.run(["redis-cli", "-p", str(port), "config", "set", "proto-max-bulk-len", "536870912"],
                           capture_output=True, timeout=30)
            results.update(self.read(unit, log, ended.returncode))
        return results

    def read(self, unit, log, code):
        results = {}
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
        for word, rest in re.findall(r"(?m)^\[(\w+)\]: (.*)$", text):
            if word in self.ENDED:
                test = re.sub(r" in tests/\S+$| \(\d+ ms\)$", "", rest)
                results[f"{unit}: {test}"] = self.ENDED[word]
        if code != 0 and "failed" not in results.values():
            results[f"{unit}: comes to its end"] = "failed"
        return results


class Python:
    """A package of PyPI with its tests; `where` the server is, it is told by arguments or environment, or finds it at
    6379, from where the shim leads it here."""

    def __init__(self, name, version, needs, tests, fast=False, arguments=()):
        self.name, self.version, self.needs, self.tests = name, version, needs, tests
        self.fast, self.arguments = fast, list(arguments)

    def fetch(self, cache):
        self.folder = cache / f"{self.name}-{self.version}"
        done = self.folder / "fetched"
        if done.exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "source").mkdir(parents=True)
        fetched([sys.executable, "-m", "venv", str(self.folder / "venv")])
        python, spec = str(self.folder / "venv/bin/python"), f"{self.name}=={self.version}"
        pip = [python, "-m", "pip", "-q", "--disable-pip-version-check"]
        fetched(pip + ["install", spec, "pytest", "pytest-timeout", *self.needs])
        fetched(pip + ["download", "--no-deps", "--no-binary", self.name, spec], self.folder)
        archive = next(self.folder.glob("*.tar.gz"), None)
        if archive is None:
            raise Unreachable(f"pip: no source of {spec}")
        fetched(["tar", "xzf", str(archive), "-C", str(self.folder / "source"), "--strip-components=1"])
        done.touch()

    def run(self, port, logs, fast, only, skipped=()):
        logs.mkdir(parents=True, exist_ok=True)
        report = logs / "junit.xml"
        report.unlink(missing_ok=True)
        environment = dict(os.environ, COMPAT_PORT=str(port), PYTHONPATH=str(HERE / "shim"))
        environment.update(WALRUS_REDIS_HOST="127.0.0.1", WALRUS_REDIS_PORT=str(port))
        command = [str(self.folder / "venv/bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += ["--timeout", "60", "--junitxml", str(report)]
        command += [word for test in self.tests for word in sorted(glob.glob(test, root_dir=self.folder / "source")) or [test]]
        command += [argument.format(port=port) for argument in self.arguments]
        with open(logs / "log", "wb") as out:
            subprocess.run(["timeout", "-k", "10", "900", *command], cwd=self.folder / "source", env=environment,
                           stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        results = {}
        if report.exists():
            for case in xml.etree.ElementTree.parse(report).iter("testcase"):
                kinds = {child.tag for child in case}
                ended = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
                results[f"{case.get('classname')}.{case.get('name')}"] = ended
        return results


REDIS_PY = ["commands", "pipeline", "pubsub", "lock", "scripting", "encoding", "monitor", "connection_pool"]
REDIS_PY_MARKS = "not onlycluster and not redismod and not ssl and not experimental and not replica"

ALL = {
    suite.name: suite
    for suite in [
        Tcl(),
        Python(
            "redis",
            "8.1.0",
            ["pytest-asyncio", "pytest-cov", "numpy", "xxhash", "pybreaker", "aiohttp", "redis-entraid", "cryptography",
             "ujson", "opentelemetry-api", "opentelemetry-sdk", "packaging", "mock"],
            [f"tests/test_{name}.py" for name in REDIS_PY] + [f"tests/test_asyncio/test_{name}.py" for name in REDIS_PY],
            arguments=["--redis-url", "redis://127.0.0.1:{port}/9", "-m", REDIS_PY_MARKS],
        ),
        Python("walrus", "0.9.8", ["redis==6.4.0"], ["walrus/tests/*.py"], fast=True),
        Python("huey", "3.5.4", ["redis==6.4.0"], ["huey/tests", "-k", "redis or Redis"]),
    ]
}

import asyncio
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parent.parent

# One thread per process, since tests run in one process per core. Subprocesses inherit it. This file imports no torch,
# which reads these variables when it is imported.
# ``tests/numerics/perturb.py`` asks for two.
for library in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
    os.environ[f"{library}_NUM_THREADS"] = os.environ.get("DETRS_TEST_THREADS", "1")

# The same arithmetic on every processor: ``auto`` would be bf16 on some. Tests of bf16 ask for it.
os.environ["DETRS_PRECISION"] = "fp32"


def keep_bytecode() -> None:
    """Compile Python once, not in every process: without bytecode, each import of torch takes 15 seconds more.

    Only needed where Python may not write bytecode beside the sources and no installer wrote it there.
    """
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    if sys.dont_write_bytecode and not Path(importlib.util.cache_from_source(torch.origin)).exists():
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(REPOSITORY / ".pytest_cache" / "bytecode")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


keep_bytecode()  # workers and subprocesses inherit the environment


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker per core, but none for single test files: most of them take less time than starting workers.

    At most 8, since a worker needs up to 2 GiB of memory.
    """
    if all(Path(argument.split("::")[0]).is_file() for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8) if cores > 1 else 0


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the largest differences from ``transformers``."""
    largest: dict[str, float] = {}
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "nodeid", "").startswith("tests/parity/"):
            for what, difference in report.user_properties:
                largest[what] = max(largest.get(what, 0.0), difference)
    if largest:
        terminalreporter.section("largest differences from transformers")
        for what, difference in sorted(largest.items()):
            terminalreporter.write_line(f"{what:45} {difference:.1e}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside the repository where there is one; tests that need it skip elsewhere."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside the repository")
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the cache of the user as it is. Subprocesses inherit the environment."""
    os.environ["DETRS_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def perturbed() -> None:
    """Another seed, or no oneDNN, where ``tests/numerics/perturb.py`` asks for it."""
    if "DETRS_TEST_SEED" in os.environ or "DETRS_TEST_ONEDNN" in os.environ:
        import perturb

        perturb.apply()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C works in tests also where a shell started them in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Fill a folder once for all workers: ``once("name", fill)`` calls ``fill(folder)`` in the first worker."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def once(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / f"once-{name}", root / f"once-{name}.done"
        with FileLock(root / f"once-{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return once


def chromium() -> str | None:
    """Path of Chromium, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def started_browser() -> Iterator[tuple[Any, asyncio.AbstractEventLoop]]:
    """Headless Chromium and the event loop that Playwright leaves running; for ``browser``."""
    path = chromium()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is missing: apt-get install chromium")
        pytest.skip("Chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        yield browser, loop
        asyncio._set_running_loop(loop)
        browser.close()


@pytest.fixture
def browser(started_browser: tuple[Any, asyncio.AbstractEventLoop]) -> Iterator[Any]:
    """Headless Chromium; tests skip without it, but not in CI.

    Only during the test is the event loop of Playwright that of the thread: ``asyncio.run`` in other tests of the
    process would fail.
    """
    browser, loop = started_browser
    asyncio._set_running_loop(loop)
    yield browser
    asyncio._set_running_loop(None)

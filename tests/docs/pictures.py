"""Makes docs/pictures/ anew, in a headless Chromium: python -m tests.docs.pictures [NAME ...]

    report_light, report_dark, report_phone   the page of a small sweep
    tensorboard                               its Custom Scalars page of two runs of that sweep
    site                                      a guide in the docs site (extra docs)
    terminal_run                              what train.py shows in a terminal
    terminal_sweep, terminal_sweep_end        sweep.py, during the sweep and at its end
    film                                      one picture of a film of evaluate.py

Each picture is of a real run, which is trained for it: some minutes in all on one core.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.report.page.browser import Browser, chromium

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000
COLUMNS, ROWS = 110, 40
QUICK = ("threads=1", "compile=off", "native=off", "checkpoint.replay=false")
SWEEP = (
    *("sweep.py", "train", "experiment=permuted_catch"),
    *("agent.nap=true,false", "seed=0,1", "env.visits=6", "env.frames_per_task=1000"),
    *("agent.min_replay_steps=100", "logger.every_updates=20", "logger.diagnostics_every_updates=100", *QUICK),
    *("sweep.dir=sweep", "sweep.engine=local"),
)
RUN = ("experiment=cartpole", "agent.nap=true", "frames=6000", "threads=1", "hydra.run.dir=runs/cartpole")
FILMED = (
    *("experiment=pong_cpu", "agent.nap=true", "frames=8000", "agent.min_replay_steps=500", "env.num_envs=4"),
    *("logger.every_updates=20", "replay.capacity=4000", "hydra.run.dir=runs/pong", *QUICK),
)
ERASE, UP = "\x1b[2K", "\x1b[1A"
CODES = re.compile(r"\x1b\[\?25[lh]|\x1b\[[0-9;]*m|\x1b\[2K|\x1b\[1A|\r|\n|[^\x1b\r\n]+")


class Screen:
    """What a terminal shows of a program that writes lines, and redraws the last of them as rich's Live does."""

    def __init__(self) -> None:
        self.lines = [""]
        self._row = 0

    def feed(self, text: str) -> None:
        for code in CODES.findall(text):
            if code == "\n":
                self._row += 1
                self.lines += [""] * (self._row + 1 - len(self.lines))
            elif code == UP:
                self._row = max(self._row - 1, 0)
            elif code == ERASE:
                self.lines[self._row] = ""
            elif code != "\r" and not code.startswith("\x1b[?"):
                self.lines[self._row] += code

    def plain(self) -> str:
        return "\n".join(Text.from_ansi(line).plain for line in self.lines)


def in_terminal(folder: Path, command: list[str], until: Callable[[Screen], bool]) -> Screen:
    """What stands in the terminal at the end of the command, or once `until` holds of it; it is stopped then."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe(sys.executable, [sys.executable, *command], environment())
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    screen = Screen()
    try:
        while data := os.read(terminal, 1 << 16):
            screen.feed(data.decode(errors="replace"))
            if until(screen):
                os.kill(pid, signal.SIGTERM)
                break
    except OSError:
        pass  # so a terminal says that its program has ended
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return screen


def environment() -> dict[str, str]:
    size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "TERM": "xterm-256color"}
    return {**os.environ, **size, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def is_halfway(shown: str) -> bool:
    """Whether a sweep's table has all four runs, one of them at 2,000 to 3,999 of its frames."""
    return shown.count(" of 6,000 ") == 4 and re.search(r"[23],\d{3} of 6,000 ", shown) is not None


class Studio:
    """Pictures, and what they are of: made when it is first needed."""

    def __init__(self, folder: Path, browser: Browser) -> None:
        self.folder, self.browser = folder, browser

    # -- what is shown

    def run(self, *command: str) -> None:
        subprocess.run([sys.executable, *command], cwd=self.folder, env=environment(), check=True)

    @cached_property
    def sweep(self) -> Screen:
        """The terminal at the end of a sweep, which is below sweep/ then."""
        self.during_the_sweep = Screen()

        def look(screen: Screen) -> bool:
            if not self.during_the_sweep.plain() and is_halfway(screen.plain()):
                self.during_the_sweep.lines = list(screen.lines)
            return False

        return in_terminal(self.folder, [str(ROOT / SWEEP[0]), *SWEEP[1:]], look)

    # -- the pictures

    def report_light(self) -> None:
        self.report("report_light", width=1200, height=1000)

    def report_dark(self) -> None:
        self.report("report_dark", width=1200, height=1000, dark=True)

    def report_phone(self) -> None:
        self.report("report_phone", width=390, height=844)

    def report(self, name: str, *, width: int, height: int, dark: bool = False) -> None:
        assert self.sweep
        self.browser.open(self.folder / "sweep" / "report.html", width=width, height=height, dark=dark)
        self.shot(name)

    def tensorboard(self) -> None:
        from tensorboard import program

        assert self.sweep
        for arm in ("nap=false", "nap=true"):
            shutil.copytree(self.folder / "sweep" / f"{arm},seed=0..1" / "seed_0", self.folder / "runs" / arm)
        os.chdir(self.folder)  # its page shows the folder as it was typed
        board = program.TensorBoard()
        board.configure(argv=["", "--logdir", "runs", "--host", "127.0.0.1", "--port", "0"])
        self.browser.visit(f"{board.launch()}#custom_scalars", width=1200, height=900)
        self.browser.until(f"{ELEMENTS}.filter((each) => each.localName === 'tf-line-chart-data-loader').length > 4")
        for _ in range(3):  # each chart turns a wheel until its numbers are there, and then draws
            self.browser.until(f"!{ELEMENTS}.some((each) => /spinner/.test(each.localName) && each.clientHeight > 0)")
            time.sleep(2)
        self.shot("tensorboard")

    def site(self) -> None:
        out = self.folder / "site"
        build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(out)]
        subprocess.run(build, cwd=ROOT, env={**environment(), "NO_MKDOCS_2_WARNING": "1"}, check=True)
        self.browser.visit((out / "guides" / "start.html").as_uri(), width=1280, height=850)
        self.browser.until("document.readyState === 'complete'")
        self.shot("site")

    def terminal_run(self) -> None:
        typed = ["train.py", *RUN]
        command = [str(ROOT / typed[0]), *typed[1:]]

        def has_evaluated(screen: Screen) -> bool:
            return "left 0:" in screen.plain() and "evaluation:" in screen.plain()

        screen = in_terminal(self.folder, command, has_evaluated)
        self.terminal("terminal_run", typed, screen)

    def terminal_sweep(self) -> None:
        assert self.sweep
        self.terminal("terminal_sweep", SWEEP, self.during_the_sweep)

    def terminal_sweep_end(self) -> None:
        self.terminal("terminal_sweep_end", SWEEP, self.sweep)

    def film(self) -> None:
        import cv2

        self.run(str(ROOT / "train.py"), *FILMED)
        one = ("episodes=1", "num_envs=1", "env.protocol.max_episode_frames=1200")
        self.run(str(ROOT / "evaluate.py"), "runs/pong", *one, "video=true", "out=out")
        (path,) = (self.folder / "out" / "videos").glob("*.mp4")
        reader = cv2.VideoCapture(str(path))
        reader.set(cv2.CAP_PROP_POS_FRAMES, 250)
        cv2.imwrite(str(self.folder / "film.png"), reader.read()[1])
        self.keep("film", self.folder / "film.png")

    # -- how they are taken

    def terminal(self, name: str, typed: Sequence[str], screen: Screen) -> None:
        """Text with its colours below its command, as rich draws a terminal, without the font that it would fetch."""
        console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115
        prompt = f"$ python {' '.join(word for word in typed if word not in QUICK)}"
        for line in (prompt, *screen.lines):
            console.print(Text.from_ansi(line))
        drawn = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="nap_rl", theme=MONOKAI), flags=re.S)
        width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', drawn)[0])
        page = self.folder / f"{name}.html"
        page.write_text(f"<!doctype html><meta charset=utf-8><style>body {{ margin: 0 }}</style>{drawn}")
        self.browser.visit(page.as_uri(), width=1000, height=round(1000 * height / width))
        self.browser.until("document.readyState === 'complete'")
        self.shot(name)

    def shot(self, name: str) -> None:
        self.keep(name, self.browser.screenshot(self.folder / f"{name}.png"))

    def keep(self, name: str, path: Path) -> None:
        """With as many colours as fit."""
        out = PICTURES / f"{name}.png"
        out.parent.mkdir(exist_ok=True)
        for colours in (256, 128, 64, 32):
            Image.open(path).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(out, optimize=True)
            if out.stat().st_size < MOST_BYTES:
                print(f"{out.relative_to(ROOT)}: {out.stat().st_size / 1000:.0f} kB, {colours} colours", flush=True)
                return
        raise ValueError(f"{out} is larger than {MOST_BYTES:,} bytes")


ELEMENTS = """(function all(root) {
    return [...root.querySelectorAll('*')].flatMap((each) => [each, ...(each.shadowRoot ? all(each.shadowRoot) : [])]);
})(document)"""
"""Every element of a page, also those in shadow trees."""

NAMES = (
    *("report_light", "report_dark", "report_phone", "tensorboard"),
    *("terminal_run", "terminal_sweep", "terminal_sweep_end", "film"),
    "site",  # the last, because it shows one of the others
)


@contextmanager
def studio() -> Iterator[Studio]:
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder) / "profile", here=True) as browser:
        yield Studio(Path(folder), browser)


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - set(NAMES)
    if unknown:
        sys.exit(f"no picture is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    with studio() as made:
        for name in sys.argv[1:] or NAMES:
            getattr(made, name)()

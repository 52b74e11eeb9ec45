"""A page in headless Chromium: how wide it becomes, what it asks the network for, what it says on the console."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=10000"),
)

# Frames of their own widths, in each of which the page believes to be the window.
MEASURE = """
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument.documentElement;
    return {
      width: frame.contentWindow.innerWidth,
      needed: page.scrollWidth,
      height: page.scrollHeight,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
      images: [...frame.contentDocument.images].filter((image) => image.naturalWidth > 0).length,
    };
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
"""


@dataclass(frozen=True)
class Seen:
    """Of each page and width: width, needed (width of the content), height, requests, images (shown); and the console.

    Attributes:
        frames: pages x widths, the widths of the first page first.
        console: messages of any level.
    """

    frames: list[dict]
    console: list[str]


def look(pages: Sequence[str], folder: Path, widths: Sequence[int] = (400, 1400)) -> Seen:
    """Open pages in all widths, in one start of the browser."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in widths
    )
    file = folder / "frames.html"
    file.write_text(f'<body>{frames}<pre id="seen"></pre><script>{MEASURE}</script></body>', encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return Seen(json.loads(html.unescape(found[1])), re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr))

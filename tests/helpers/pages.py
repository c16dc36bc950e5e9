"""Pages of reports, and runs to report on."""

import re
from html.parser import HTMLParser
from pathlib import Path

from stml_semi.run_folder.folder import RunFolder
from stml_semi.run_folder.recipe import build_config

VOID = {"meta", "link", "img", "br", "input"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers what tests look at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if values.get("id"):
            self.ids.append(str(values["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def check(self) -> None:
        """What holds for every page."""
        assert all(address.startswith(("#", "data:")) for address in self.addresses)
        assert not re.search(r"url\((?!#)|@import|fetch\(|https?://", self.source)
        assert len(self.ids) == len(set(self.ids))
        assert [tag for tag, _ in self.tags].count("h1") == 1
        assert {"header", "nav", "main", "footer"} <= {tag for tag, _ in self.tags}
        assert all("alt" in values for tag, values in self.tags if tag == "img")
        links = {address[1:] for address in self.addresses if address.startswith("#") and len(address) > 1}
        assert links <= set(self.ids)
        assert "prefers-color-scheme: dark" in self.source
        assert len(self.source) < 4_000_000


def unfinished(folder: Path, pictures: str) -> RunFolder:
    """A run folder whose run was killed: no model, no evaluation."""
    run = RunFolder(folder)
    run.prepare(build_config({"labeled": pictures, "backbone": "tiny-resnet", "max_steps": 90, "delta": 0.9}), {})
    run.log.write({"step": 10, "loss": 2.5, "labeled_loss": 2.5, "lr": 1e-4})
    run.log.write({"step": 20, "loss": 1.5, "labeled_loss": 1.5, "lr": 1e-4})
    return run

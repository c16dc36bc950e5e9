"""Kinds of files that Pillow does not read by itself: who reads them, and what to say of files that were skipped."""

import contextlib
import importlib
from collections.abc import Mapping

# Packages that teach Pillow a format once they are imported, with the names of their modules.
_PLUGINS = {
    "pillow-heif": ("pillow_heif", frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))),
    "pillow-avif-plugin": ("pillow_avif", frozenset((".avif", ".avifs"))),
    "pillow-jxl-plugin": ("pillow_jxl", frozenset((".jxl",))),
}
_RAW = frozenset((".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"))
_KINDS_NAMED = 10


def register_plugins() -> None:
    """Lets Pillow read more formats, with the packages that are installed."""
    for module, _ in _PLUGINS.values():
        with contextlib.suppress(ImportError):
            plugin = importlib.import_module(module)
            if register := getattr(plugin, "register_heif_opener", None):  # The others register when imported.
                register()


def describe_skipped(skipped: Mapping[str, int], num_images: int) -> str:
    """How many files a folder holds that are not read, and what would read them.

    Args:
        skipped: lowercase extension, with its dot, -> number of files; "" for those without one.
        num_images: files that are read.
    """
    count = sum(skipped.values())
    kinds = sorted(skipped.items(), key=lambda item: (-item[1], not item[0], item[0]))
    named = [f"{number:,} {extension or 'without an extension'}" for extension, number in kinds[:_KINDS_NAMED]]
    hidden = len(kinds) - len(named)
    listed = ", ".join([*named, *([f"{hidden} more kinds"] if hidden else [])])
    verb, whose = ("is", "its") if count == 1 else ("are", "their")
    files = f"{count:,} of {num_images + count:,} files {verb} skipped because of {whose} kind"
    return "; ".join([f"{files}: {listed}", *_fixes(frozenset(skipped))])


def _fixes(extensions: frozenset[str]) -> list[str]:
    fixes = [
        f"install {package} to read {', '.join(sorted(known & extensions))}"
        for package, (_, known) in _PLUGINS.items()
        if known & extensions
    ]
    if raw := sorted(_RAW & extensions):
        fixes.append(f"convert {', '.join(raw)} to jpg, with rawpy for example")
    if "" in extensions:
        fixes.append("give images their extension")
    return fixes

"""`push`: a model folder to the Hugging Face hub, in one commit, with the login that is there."""

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput
from stml_semi.sharing.card import PLACE, check_card

# What a model consists of. Checkpoints, optimizer state and anything pickled never match.
_UPLOADED = (
    r"[\w.-]+\.json",
    r"model(-\d+-of-\d+)?\.safetensors",
    r"README\.md",
    r"training_config\.yaml",
    r"training_curves\.png",
)
_ONNX = r"embedder\.onnx(\.data)?"
_MODULE = r"\d+_\w+/(config\.json|model\.safetensors)"
# Seconds before each further attempt.
_PAUSES = (1.0, 5.0, 20.0)
# By itself the hub's client waits many minutes for a Xet storage that a firewall keeps away.
_XET_PATIENCE = "30s"


class Pushed(NamedTuple):
    """Where a model went."""

    url: str
    commit: str


def push(
    model: str,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    note: Callable[[str], None] | None = None,
) -> Pushed:
    """Uploads a model, creating the repository if there is none.

    An interrupted upload changes nothing on the hub: files come first, and one commit makes them visible. Pushing
    again sends only what has changed, and takes away module folders that the model has no more.

    Args:
        model: a run folder or an exported model.
        repo: user/name.
        private: of a repository that is created; an existing one stays as it is.
        license: for the card, in place of the one it states.
        note: told what happens.

    Raises:
        BadInput: nothing to upload, no login, no permission, or the hub cannot be reached; the model stays as it was,
            and the command to try again is part of the message.
    """
    folder = model_folder(model)
    files = _files(folder, repo, license)
    again = f"stml-semi push {shlex.quote(model)} {repo}"
    again += " --private" * private + (f" --license {license}" if license else "")
    check_login("push")
    tell = note or (lambda message: None)
    with _xet_may_be_left() as leave_xet:
        for attempt, pause in enumerate((*_PAUSES, None)):
            try:
                return _upload(files, repo, private=private, note=tell)
            except Exception as error:
                problem = _explain(error, repo)
                if pause is None or not _is_transient(error):
                    kept = f"the model is complete in {folder}; try again with: {again}"
                    raise BadInput(f"push {repo}: {problem}; {kept}") from None
                way = " by plain HTTP, without Xet" if leave_xet(error) else ""
                tell(f"attempt {attempt + 1} failed ({problem}); trying again{way} in {pause:.0f} s")
                time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def _xet_may_be_left() -> Iterator[Callable[[Exception], bool]]:
    """Gives a function that has the client use LFS from then on if an error is one of the Xet storage.

    The client takes Xet wherever it is installed and never falls back by itself.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_DISABLE_XET
    os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_DURATION", _XET_PATIENCE)

    def leave(error: Exception) -> bool:
        # Other lost connections have classes of the HTTP client.
        if constants.HF_HUB_DISABLE_XET or not isinstance(error, ConnectionError):
            return False
        constants.HF_HUB_DISABLE_XET = True
        return True

    try:
        yield leave
    finally:
        constants.HF_HUB_DISABLE_XET = before


def check_login(flag: str) -> None:
    """
    Raises:
        BadInput: there is no token to upload with, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise BadInput(f"{flag}: HF_HUB_OFFLINE is set; unset it to upload")
    if not get_token():
        raise BadInput(
            f"{flag}: you are not logged in; run `hf auth login`, or set HF_TOKEN, with a token that may write"
        )


def model_folder(model: str) -> Path:
    """The model of a run, or the folder itself.

    Raises:
        BadInput: there is none.
    """
    run = RunFolder(model, writes=False)
    folder = run.model if run.is_run() else run.path
    if not (folder / "modules.json").is_file():
        raise BadInput(f"{model}: holds no exported model; give a finished run, or what `export` wrote")
    return folder


def _files(folder: Path, repo: str, license: str | None) -> dict[str, Path | bytes]:
    """Path in the repository -> local file, or its content."""
    from huggingface_hub import ModelCard, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if "/" not in repo:
            raise HFValidationError("a repository belongs to someone")
    except HFValidationError:
        raise BadInput(f"push {repo}: is no repository id; give user/name") from None
    wanted = re.compile("|".join((*_UPLOADED, _ONNX, _MODULE)))
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files: dict[str, Path | bytes] = {name: path for name, path in found.items() if wanted.fullmatch(name)}
    if "README.md" in found:
        card: Any = ModelCard(found["README.md"].read_text(encoding="utf-8").replace(PLACE, repo))
        if license is not None:
            card.data.license = license
        check_card(str(card))
        files["README.md"] = str(card).encode()
    token = (get_token() or "").encode()
    for name, content in files.items():
        text = b"" if name.endswith((".safetensors", ".onnx", ".data")) else content
        if token and token in (text.read_bytes() if isinstance(text, Path) else text):
            raise BadInput(f"push {repo}: {name} contains your access token; take it out, and revoke that token")
    return files


def _upload(files: dict[str, Path | bytes], repo: str, *, private: bool, note: Callable[[str], None]) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi()
    url = api.create_repo(repo, private=private or None, exist_ok=True)
    there = set(api.list_repo_files(repo))
    note(f"uploading {len(files)} files to {url}")
    # Not upload_folder: that may spread a folder over several commits, and show a model that is half replaced.
    operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
    gone = {name for name in there - files.keys() if re.fullmatch(_MODULE, name)}
    operations += [CommitOperationDelete(name) for name in sorted(gone)]
    commit = api.create_commit(repo, operations, commit_message="Upload model with stml-semi")
    return Pushed(str(url), commit.oid)


def _is_transient(error: Exception) -> bool:
    """Whether the same request may well succeed later: a busy or failing server, a lost connection."""
    status = _status(error)
    if status is not None:
        return status in (408, 409, 412, 429) or status >= 500
    return not isinstance(error, ValueError) or "JSONDecodeError" in type(error).__name__


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error; the client wraps some of its errors."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response.status_code
        error = error.__cause__
    return None


def _explain(error: Exception, repo: str) -> str:
    status = _status(error)
    if status == 401:
        return "the hub does not accept your token (401); log in again with `hf auth login`"
    if status == 403:
        return f"your token may not write to {repo} (403); take a token with write access, or a name of your own"
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:  # "Error while uploading model.safetensors" alone does not say why.
        parts.append((str(cause).strip() or type(cause).__name__).splitlines()[0])
        cause = cause.__cause__
    return ": ".join(dict.fromkeys(parts))[:300]

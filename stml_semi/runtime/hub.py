"""Whether the Hugging Face hub answers: asked once, for three seconds at most, before anything is fetched from it."""

import functools
import os

_SECONDS = 3


@functools.cache
def reach_hub() -> bool:
    """Whether the hub answers.

    If not, its libraries are switched offline: they use what they have downloaded before, and fail at once where that
    is not enough, in place of five attempts for every file.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # For what is imported later, and for decoding processes.
        import datasets.config

        datasets.config.HF_HUB_OFFLINE = True
        return False
    return True

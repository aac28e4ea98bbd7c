"""Whether a path may be an id on the Hugging Face Hub.

Whether there is such a repository is asked by presets.base.hub_listing.
"""

import re


def looks_like_hub_id(path: str) -> bool:
    """True for `owner/name` within the Hub's rules for names; says nothing about whether it exists."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", path, re.ASCII) or len(path) > 96:
        return False
    return not any(
        part[-1] in "-." or "--" in part or ".." in part or part.endswith(".git") for part in path.split("/")
    )

"""The tiny base, made once per test session: the real model classes at toy sizes, in fp32."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engine.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("tiny") / "base")

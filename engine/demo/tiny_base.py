"""A complete tiny base: the classes, folders and files of Wan 2.2 I2V A14B, with random weights, made offline in
seconds.

For the demo and the tests. Previews made with it are noise in the shape of a video. Torch is imported only when there
is something to make.
"""

import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.toy_base.model_index import model_index
from presets.errors import UserError

BOUNDARY_RATIO = 0.9  # model_index.json of Wan 2.2 I2V A14B
FLOW_SHIFT = 5.0  # the official sample_shift of I2V A14B
MANIFEST = "tiny.json"


def build_tiny(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 16,
    text_dim: int = 32,
    vae_dim: int = 4,
) -> Path:
    """Write the folder and return `path`; the same arguments give the same bytes. A whole one of the same arguments is
    kept.

    Two experts of `layers` blocks, `heads` x `head_dim` wide (43,000 parameters each by default), in fp32. Raises
    UserError when something else lies at `path`.
    """
    recipe: dict[str, Any] = {
        "seed": seed,
        "layers": layers,
        "heads": heads,
        "head_dim": head_dim,
        "text_dim": text_dim,
        "vae_dim": vae_dim,
        "diffusers": version("diffusers"),
    }
    if is_whole(path, recipe):
        return path
    if path.exists() and not (path / MANIFEST).exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            "something else lies here already", where=str(path), fix="Choose another folder for the tiny base"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as aside:
            folder = Path(aside) / "base"
            folder.mkdir()
            _write(folder, recipe)
            if path.exists():
                shutil.rmtree(path)
            folder.rename(path)
    except OSError as e:
        raise UserError(f"cannot be written: {e.strerror or e}", where=str(path), fix="Choose another folder") from None
    return path


def is_whole(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a tiny base of these arguments lies at `path` with every file at its full size."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        return bool(
            manifest["recipe"] == recipe
            and all((path / name).stat().st_size == size for name, size in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return False


def _write(folder: Path, recipe: dict[str, Any]) -> None:
    from engine.demo.tiny_base_parts import write_parts

    write_parts(folder, recipe, flow_shift=FLOW_SHIFT)
    (folder / "model_index.json").write_text(json.dumps(model_index(BOUNDARY_RATIO), indent=2) + "\n")
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / MANIFEST).write_text(json.dumps({"recipe": recipe, "files": files}, indent=2) + "\n")

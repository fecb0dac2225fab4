"""Find the file that the user means: the model that ships, a path, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path

from penjing.errors import BadFile, UnknownName
from penjing.fetch.shipped import shipped_model

_REPOSITORY = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::(?P<type>[\w.-]+)|/(?P<file>[\w./ -]+\.gguf))?"
)
_FILE_ENDINGS = (".gguf", ".safetensors", ".toml", ".json", ".bin")


def resolve(model: str | None) -> Path:
    """The file or folder that `model` names, fetched if it has to be.

        None                         the model that ships
        models/some.gguf  ~/folder   what is there
        owner/name                   the repository's GGUF: Q4_K_M, or else the smallest of at least 4 bits
        owner/name:Q8_0              the GGUF of that type
        owner/name/some.gguf         that file

    Raises:
        BadFile: no such file, or one that may not be read; a repository without GGUF.
        UnknownName: neither a file nor a repository, or the repository has no such file.
        Unavailable: no network, no space, or the package for the hub is not installed.
    """
    if model is None:
        return shipped_model()
    path = Path(model).expanduser()
    if model and _exists(path):
        return path
    named = _REPOSITORY.fullmatch(model)
    if named and not _is_path(model, named):
        from penjing.fetch import hub

        return hub.download(named["repository"], named["type"], named["file"])
    if _is_path(model, named):
        raise BadFile(f"there is no file `{model}`", hint=f"look into the folder: `ls {path.parent}`")
    raise _unknown(model)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise BadFile(f"cannot read `{path}`: {error.strerror}") from error
    except (OSError, ValueError):  # too long, or with a null byte: no name of a file
        return False


def _is_path(model: str, named: re.Match[str] | None) -> bool:
    """A name that can only be meant as a path, because of how it begins or ends."""
    if model.startswith(("/", "./", "../", "~")):
        return True
    return model.lower().endswith(_FILE_ENDINGS) and not (named and named["file"])


def _unknown(model: str) -> UnknownName:
    from penjing import catalogue

    near = catalogue.nearest(model, catalogue.model_names())
    shapes = f"; the catalogue has `{near[0]}`, as shapes for `penjing plan` alone" if near else ""
    return UnknownName(
        f"`{model[:120]}` is neither a file nor a repository",
        hint=f"name a GGUF file, or a repository as `owner/name`{shapes}",
    )


__all__ = ["resolve", "shipped_model"]

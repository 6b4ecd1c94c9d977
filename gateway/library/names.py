"""Names of models on a hub, and the files of a repository that a name means. Pure: nothing here asks anybody."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from gateway.library.errors import InvalidReference, NotFound

Kind = Literal["model", "dataset"]
DATASET_SUFFIXES = (".jsonl", ".parquet", ".csv")
DATASET_FILES_MAX = 200

_OWNER_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_QUANTISATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_LABEL = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:IQ\d|TQ\d|Q\d)(?:_[A-Z0-9]+)*|MXFP4(?:_MOE)?|BF16|F16|F32|FP16|FP32)(?=[-._/]|$)", re.I
)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.I)
_PATH_LENGTH_MAX = 1024
# Beyond eight bits a weight gains size and loses speed for nothing that anybody could notice.
_BEYOND_EIGHT_BITS = ("F16", "BF16", "F32", "FP16", "FP32")


class Reference(msgspec.Struct, frozen=True):
    """`owner/repo`, with a quantisation, a file or a revision where these were named."""

    repo: str
    quantisation: str | None = None
    file: str | None = None
    revision: str = "main"

    def __str__(self) -> str:
        quantisation = f":{self.quantisation}" if self.quantisation else ""
        file = f"/{self.file}" if self.file else ""
        revision = f"@{self.revision}" if self.revision != "main" else ""
        return f"{self.repo}{quantisation}{file}{revision}"


class Found(msgspec.Struct, frozen=True):
    """A repository with GGUF files. `gated`: its owner lets people in one by one."""

    repo: str
    downloads: int
    likes: int
    gated: bool
    changed: str | None


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a repository. `sha256` is that of its content when the hub keeps it in LFS; any other file has only
    `git_sha1`, git's digest of it. Both are hexadecimal."""

    path: str
    size_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def digest(self) -> str:
        """What the file is called in the cache."""
        return self.sha256 or self.git_sha1 or ""


class Variant(msgspec.Struct, frozen=True):
    """One quantisation of a repository: its file, or its parts in order."""

    quantisation: str
    files: tuple[RemoteFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class Selection(msgspec.Struct, frozen=True):
    """The files that a reference means: of the model, its projector for images, its small draft model."""

    model: Variant
    projector: RemoteFile | None = None
    draft: RemoteFile | None = None

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        return (*self.model.files, *(one for one in (self.projector, self.draft) if one is not None))


def parse(text: str, kind: Kind = "model") -> Reference:
    """A name such as `hf:owner/repo:Q4_K_M@revision` or `owner/repo/folder/file.gguf`, of a dataset
    `owner/repo/data.csv@revision`; raises InvalidReference."""
    rest, _, revision = text.removeprefix("hf:").partition("@")
    if "@" in text and (not _REVISION.fullmatch(revision) or path_problem(revision) is not None):
        raise InvalidReference(f"{text!r}: after @ comes a branch, a tag or a commit")
    rest, colon, quantisation = rest.partition(":")
    parts = rest.split("/", 2)
    repo, file = "/".join(parts[:2]), parts[2] if len(parts) > 2 else None
    if not _OWNER_REPO.fullmatch(repo) or ".." in repo:
        raise InvalidReference(f"{text!r}: expected owner/repo, owner/repo:QUANTISATION or owner/repo/file.gguf")
    if colon and (file is not None or not _QUANTISATION.fullmatch(quantisation)):
        raise InvalidReference(f"{text!r}: after : comes a quantisation such as Q4_K_M, and then no file")
    if file is not None:
        problem = path_problem(file)
        suffixes = (".gguf",) if kind == "model" else DATASET_SUFFIXES
        if problem is not None or not file.lower().endswith(suffixes):
            raise InvalidReference(f"{text!r}: {problem or f'the file of a {kind} ends in ' + ', '.join(suffixes)}")
    if kind == "dataset" and colon:
        raise InvalidReference(f"{text!r}: a dataset has no quantisation")
    return Reference(repo, quantisation or None, file, revision or "main")


def path_problem(path: str) -> str | None:
    """Why a hub's file name may not become a path of ours; None when it may."""
    parts = path.split("/")
    if not path or len(path) > _PATH_LENGTH_MAX or any(len(part.encode()) > 255 for part in parts):
        return "a file name is empty or too long"
    if any(part in ("", ".", "..") for part in parts):
        return "a file name would lead out of its folder"
    if "\\" in path or ":" in path or not path.isprintable():
        return "a file name holds a backslash, a colon or a control character"
    return None


def check_paths(files: Iterable[RemoteFile]) -> None:
    """Raises InvalidReference when names of a repository are no safe paths, or would be one on some file systems."""
    seen: dict[str, str] = {}
    for file in files:
        problem = path_problem(file.path)
        if problem is not None:
            raise InvalidReference(f"the repository holds {file.path[:100]!r}: {problem}")
        other = seen.setdefault(file.path.casefold(), file.path)
        if other != file.path:
            raise InvalidReference(f"the repository holds both {other!r} and {file.path!r}")


def variants(files: Sequence[RemoteFile]) -> list[Variant]:
    """The quantisations of a repository, the smallest first. A split file counts when all its parts are there."""
    groups: dict[tuple[str, int], list[RemoteFile]] = {}
    for file in files:
        if not file.path.lower().endswith(".gguf") or _is_companion(file.path):
            continue
        split = _SPLIT.search(file.path)
        stem, parts = (file.path[: split.start()], int(split[2])) if split else (file.path[:-5], 1)
        groups.setdefault((stem, parts), []).append(file)
    found = [
        Variant(label(stem), tuple(sorted(group, key=lambda file: file.path)))
        for (stem, parts), group in groups.items()
        if len(group) == parts
    ]
    return sorted(found, key=lambda variant: (variant.size_bytes, variant.files[0].path))


def label(stem: str) -> str:
    """The quantisation in a file's name or folder, in capitals; empty where there is none."""
    found = _LABEL.findall(stem)
    return found[-1].upper() if found else ""


def select(reference: Reference, files: Sequence[RemoteFile], room_bytes: int | None = None) -> Selection:
    """The files a reference means. Without a quantisation or file it is the largest that fits into `room_bytes` (None:
    no bound) and has at most eight bits a weight. Raises NotFound, which says what there is."""
    known = variants(files)
    if not known:
        raise NotFound(f"{reference.repo} holds no GGUF model")
    return Selection(_model(reference, known, room_bytes), _companion(files, "mmproj"), _companion(files, "draft"))


def select_dataset(reference: Reference, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files of rows that a reference means: one, or all that there are. Raises NotFound, which says what there
    is."""
    known = [file for file in files if file.path.lower().endswith(DATASET_SUFFIXES)]
    chosen = tuple(file for file in known if reference.file in (None, file.path))
    if not known:
        raise NotFound(f"{reference.repo} holds no {', '.join(DATASET_SUFFIXES)}; many have @refs/convert/parquet")
    offer = ", ".join(f"{file.path} ({gigabytes(file.size_bytes)})" for file in known[:20])
    if not chosen:
        raise NotFound(f"{reference.repo} has no {reference.file}; there is {offer}")
    if len(chosen) > DATASET_FILES_MAX:
        raise NotFound(f"{reference.repo} has {len(chosen)} files of rows: name one of them, such as {offer}")
    return chosen


def _model(reference: Reference, known: list[Variant], room_bytes: int | None) -> Variant:
    offer = ", ".join(f"{one.quantisation or one.files[0].path} ({gigabytes(one.size_bytes)})" for one in known[:20])
    if reference.file is not None:
        for variant in known:
            if reference.file in [file.path for file in variant.files]:
                return variant
        raise NotFound(f"{reference.repo} has no model file {reference.file}; there is {offer}")
    if reference.quantisation is not None:
        wanted = reference.quantisation.upper()
        for variant in known:
            if wanted in (variant.quantisation, variant.quantisation.removeprefix("UD-")):
                return variant
        raise NotFound(f"{reference.repo} has no {reference.quantisation}; there is {offer}")
    fitting = [one for one in known if room_bytes is None or one.size_bytes <= room_bytes]
    if not fitting:
        raise NotFound(f"nothing of {reference.repo} fits into {gigabytes(room_bytes or 0)}; there is {offer}")
    return next((one for one in reversed(fitting) if one.quantisation not in _BEYOND_EIGHT_BITS), fitting[0])


def _is_companion(path: str) -> bool:
    name = path.rsplit("/", 1)[-1].lower()
    return "mmproj" in name or "draft" in name or "imatrix" in name


def _companion(files: Sequence[RemoteFile], word: str) -> RemoteFile | None:
    """The file of that kind: with half precision where there is a choice, and then the smallest."""
    found = [
        file for file in files if word in file.path.rsplit("/", 1)[-1].lower() and file.path.lower().endswith(".gguf")
    ]
    order = {"F16": 0, "BF16": 1, "FP16": 0}
    return min(found, key=lambda file: (order.get(label(file.path[:-5]), 2), file.size_bytes), default=None)


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 10**8 else f"{size_bytes / 1e6:.1f} MB"

"""`gateway models`: beside the list of what is served, the library of files."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import cli_links, command
from gateway.cli_links import with_imports

if TYPE_CHECKING:
    from gateway.library.files import File
    from gateway.library.garbage import Garbage
    from gateway.library.importing import Imports
    from gateway.state.database import Database


KNOWN_MAX = 10_000


def add_verbs(models: argparse.ArgumentParser) -> None:
    verbs = models.add_subparsers(title="the library of files", metavar="VERB", dest="verb")
    bringing = _verb(
        verbs, "import", _import, "take files, or those in folders, into the library; print where they are"
    )
    bringing.add_argument("paths", nargs="*", type=Path, metavar="PATH")
    bringing.add_argument("--pulled", action="store_true", help="also the models that were pulled from a hub")
    bringing.add_argument(
        "--how",
        choices=("auto", "link", "hardlink", "reflink", "copy"),
        default="auto",
        help="auto: share blocks where the file system can, else link",
    )
    bringing.add_argument("--tag", action="append", default=[], help="a word to find it by (repeatable)")
    finding = _verb(verbs, "find", _find, "files of the library by the beginnings of their words")
    finding.add_argument("words", nargs="*", metavar="WORD")
    finding.add_argument("--kind", choices=("model", "dataset"))
    for name in ("status", "architecture", "quantisation"):
        finding.add_argument(f"--{name}")
    finding.add_argument("--limit", type=int, default=100)
    _by_id(_verb(verbs, "show", _show, "everything about a file of the library"))
    _by_id(_verb(verbs, "verify", _verify, "read a file anew and compare its digests; what is not right is put away"))
    _add_links(verbs)
    _add_hub(verbs)
    _verb(verbs, "hardware", _hardware, "what this machine has for models, and what would run well on it")
    collecting = _verb(verbs, "gc", _collect, "remove what nobody needs any more, and say what went")
    collecting.add_argument("--dry-run", action="store_true", help="only say what would go")
    collecting.add_argument("--all", action="store_true", help="also what others left, and files nobody knows")
    _by_id(_verb(verbs, "delete", _delete, "delete a file that nothing refers to; what it is linked to stays"))


def _add_links(verbs: Any) -> None:
    linking = _verb(verbs, "link", cli_links.link, "have a file of the library at another path too")
    _by_id(linking)
    linking.add_argument("path", type=Path)
    linking.add_argument("--how", choices=("link", "hardlink", "reflink", "copy"), default="link")
    _verb(verbs, "links", cli_links.links, "where files of the library are linked to")
    _by_id(_verb(verbs, "unlink", cli_links.unlink, "take a link back"))
    _verb(verbs, "repair", cli_links.repair, "look at all links, and make those again that are gone")


def _add_hub(verbs: Any) -> None:
    searching = _verb(verbs, "search", cli_links.search, "repositories of the hub with GGUF files")
    searching.add_argument("words", nargs="+", metavar="WORD")
    searching.add_argument("--limit", type=int, default=20)
    offering = _verb(
        verbs, "offers", cli_links.offers, "the quantisations of a repository, with what fits this machine"
    )
    offering.add_argument("name", help="owner/repo, or owner/repo@revision")
    looking = _verb(verbs, "lookup", cli_links.look_up, "find a file of the library on the hub, by name and digest")
    _by_id(looking)
    looking.add_argument("--repo", help="look there, instead of where the file's name leads")


def _verb(verbs: Any, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
    verb = command.add(verbs, name, run, summary)
    verb.add_argument("--json", action="store_true", help="machine-readable output")
    command.add_config_options(verb)
    return verb


def _by_id(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("id")


def _import(options: argparse.Namespace) -> int:
    from gateway import audit
    from gateway.hubs import cache_folder
    from gateway.library.errors import LibraryError
    from gateway.library.files import PULLED, Wanted

    cache = cache_folder(command.load(options)) if options.pulled else None
    given = [*options.paths, *([] if cache is None else [cache])]
    paths = [path for one in given for path in _files_of(one)]
    if not paths:
        raise command.CommandError(
            "name files, or folders that hold .gguf files" if not given else "no .gguf file there"
        )

    async def one(imports: Imports, database: Database, path: Path) -> bool:
        try:
            file = await imports.start(path, options.how, options.tag)
        except LibraryError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return False
        await audit.note(database, "library.import", file.id, path=file.source, how=options.how)
        file = await imports.wait(file.id)
        if options.json:
            command.print_json(file)
        elif file.status == "ready":
            print(file.path)
        if file.status != "ready":
            print(f"{path}: {file.status}: {file.reason}", file=sys.stderr)
        return file.status == "ready"

    async def work(imports: Imports, database: Database) -> int:
        places = asyncio.Semaphore(8)
        pulled, _ = await imports.files.page(Wanted(how=PULLED, status="ready"), KNOWN_MAX)
        known = {file.path: file for file in pulled}

        async def placed(path: Path) -> bool:
            if str(path) in known:  # It is in the library since it was pulled.
                command.print_json(known[str(path)]) if options.json else print(path)
                return True
            async with places:
                return await one(imports, database, path)

        return int(not all(await asyncio.gather(*(placed(path) for path in paths))))

    return with_imports(options, work)


def _files_of(path: Path) -> list[Path]:
    return sorted(path.rglob("*.gguf")) if path.is_dir() else [path]


def _find(options: argparse.Namespace) -> int:
    from gateway import model_files
    from gateway.library.files import Wanted

    wanted = Wanted(
        text=" ".join(options.words) or None,
        kind=options.kind,
        status=options.status,
        architecture=options.architecture,
        quantisation=options.quantisation,
    )

    async def work(imports: Imports, database: Database) -> list[File]:
        return (await imports.files.page(wanted, max(1, options.limit)))[0]

    files = with_imports(options, work)
    rows = [("ID", "NAME", "STATUS", "ARCHITECTURE", "PARAMETERS", "QUANTISATION", "CONTEXT", "SIZE")]
    for file in files:
        facts = file.facts
        about = ("", "", "", "")
        if facts is not None:
            context = str(facts.context_tokens or "")
            about = (facts.architecture, model_files.count(facts.parameters), facts.quantisation or "", context)
        rows.append((file.id, file.name, _standing(file), *about, model_files.size(file.size_bytes)))
    command.print_rows(rows, files, options)
    return 0


def _standing(file: File) -> str:
    """The status of a file, and how far the work on it is."""
    from gateway.library.files import UNFINISHED

    if file.status not in UNFINISHED or not (file.done_bytes and file.size_bytes):
        return file.status
    return f"{file.status} {file.done_bytes * 100 // file.size_bytes}%"


def _show(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> File:
        return await imports.files.get(options.id)

    command.print_record(with_imports(options, work), options)
    return 0


def _verify(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> File:
        from gateway import audit

        await imports.verify(options.id)
        await audit.note(database, "library.verify", options.id)
        return await imports.wait(options.id)

    file = with_imports(options, work)
    if options.json:
        command.print_json(file)
    else:
        print(file.status + (f": {file.reason}" if file.reason else ""))
    return int(file.status != "ready")


def _delete(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> None:
        from gateway import audit

        file = await imports.files.get(options.id)
        await imports.delete(file.id)
        await audit.note(database, "library.delete", file.id, name=file.name)

    with_imports(options, work)
    return 0


def _collect(options: argparse.Namespace) -> int:
    from gateway import model_files
    from gateway.hubs import collector_of

    async def work(imports: Imports, database: Database) -> list[Garbage]:
        from gateway import audit

        collector = collector_of(command.load(options), imports.files)
        found = await collector.collect(dry_run=options.dry_run, everything=options.all)
        if found and not options.dry_run:
            size_bytes = sum(one.size_bytes for one in found)
            await audit.note(database, "library.collect", "", count=len(found), bytes=size_bytes)
        return found

    found = with_imports(options, work)
    if options.json:
        command.print_json(found)
        return 0
    if found:
        command.print_table(
            [("WHAT", "SIZE", "PATH")] + [(one.sort, model_files.size(one.size_bytes), one.path) for one in found]
        )
    size = model_files.size(sum(one.size_bytes for one in found))
    things = "1 thing" if len(found) == 1 else f"{len(found)} things"
    print(f"{things}, {size}, {'would be removed' if options.dry_run else 'removed'}")
    return 0


def _hardware(options: argparse.Namespace) -> int:
    from gateway import model_files
    from gateway.hubs import cache_folder
    from gateway.library.machine import machine

    config = command.load(options)
    found = asyncio.run(machine([Path(config.data_dir), cache_folder(config)]))
    if options.json:
        command.print_json(found)
        return 0
    memory = f"{model_files.size(found.memory_bytes)}, {model_files.size(found.available_bytes)} of it free"
    rows = [
        ("system", found.system),
        ("processor", f"{found.processor}: {found.cores} cores, {found.threads} threads for engines"),
        ("memory", f"{memory}, {found.memory_bytes_per_s / 1e9:.0f} GB/s"),
    ]
    rows += [
        (f"disk of {disk.folder}", f"{model_files.size(disk.free_bytes)} of {model_files.size(disk.total_bytes)} free")
        for disk in found.disks
    ]
    if found.build is None:
        rows.append(("llama.cpp", found.problem or ""))
    else:
        rows.append(("llama.cpp", f"{found.build.version}: {', '.join(found.build.backends)}"))
        rows += [
            (f"{device.kind} {device.name}", f"{device.description}, {model_files.size(device.total_bytes)}")
            for device in found.build.devices
        ]
    command.print_table(rows)
    advice = [("", "", "", "", ""), ("WEIGHTS", "QUANTISATION", "SIZE", "CONTEXT", "TOKENS/S")]
    advice += [
        (
            f"{one.parameters_billions:g}B",
            one.quantisation,
            model_files.size(one.size_bytes),
            str(one.context_tokens),
            f"about {one.tokens_per_s:g}",
        )
        for one in found.advice
    ]
    command.print_table(advice)
    return int(found.build is None)

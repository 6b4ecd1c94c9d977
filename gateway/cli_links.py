"""`gateway models`: links into folders of other applications, and what a hub has."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from gateway import command

if TYPE_CHECKING:
    from gateway.library.files import File
    from gateway.library.finding import Finding, Match, Offers
    from gateway.library.importing import Imports
    from gateway.library.links import Link, Repaired
    from gateway.library.names import Found
    from gateway.state.database import Database

T = TypeVar("T")


def with_imports(options: argparse.Namespace, work: Callable[[Imports, Database], Awaitable[T]]) -> T:
    """Do `work` on the library, beside a running server if there is one."""
    from gateway.hubs import library_folder, referred, shelf_of
    from gateway.library.errors import LibraryError
    from gateway.library.files import Files
    from gateway.library.importing import Imports

    config = command.load(options)

    async def run(database: Database) -> T:
        files = Files(database)
        imports = Imports(files, library_folder(config), referred=referred(config), shelf=shelf_of(config, files))
        await imports.open()
        try:
            return await work(imports, database)
        except LibraryError as error:
            raise command.CommandError(str(error)) from None
        finally:
            await imports.close()

    return command.with_database(options, run)


def link(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> Link:
        from gateway import audit
        from gateway.library.links import Links

        made = await Links(database, imports).make(options.id, options.path, options.how)
        await audit.note(database, "library.link", made.id, file=made.file_id, path=made.path, how=made.how)
        return made

    command.print_record(with_imports(options, work), options)
    return 0


def links(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> list[Link]:
        from gateway.library.links import Links

        return (await Links(database, imports).page(10_000))[0]

    found = with_imports(options, work)
    rows = [("ID", "FILE", "STATUS", "HOW", "PATH")]
    rows += [(one.id, one.file_id, one.status, one.how, one.path) for one in found]
    command.print_rows(rows, found, options)
    return 0


def unlink(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> None:
        from gateway import audit
        from gateway.library.links import Links

        gone = await Links(database, imports).remove(options.id)
        await audit.note(database, "library.unlink", gone.id, file=gone.file_id, path=gone.path)

    with_imports(options, work)
    return 0


def repair(options: argparse.Namespace) -> int:
    async def work(imports: Imports, database: Database) -> Repaired:
        from gateway import audit
        from gateway.library.links import Links

        done = await Links(database, imports).repair()
        await audit.note(database, "library.repair", "", ok=done.ok, broken=done.broken, foreign=done.foreign)
        return done

    done = with_imports(options, work)
    command.print_record(done, options)
    return int(done.broken + done.foreign > 0)


def _with_hub(options: argparse.Namespace, work: Callable[[Finding], Awaitable[T]]) -> T:
    """Do `work` on what a hub has."""

    async def run(imports: Imports, database: Database) -> T:
        from gateway.hubs import hub_settings
        from gateway.library.finding import Finding
        from gateway.library.hub import Hub

        config = command.load(options)
        finding = Finding(lambda: Hub(hub_settings(config)), imports.files)
        try:
            return await work(finding)
        finally:
            finding.close()

    return with_imports(options, run)


def search(options: argparse.Namespace) -> int:
    async def work(finding: Finding) -> list[Found]:
        return await finding.search(" ".join(options.words), max(1, options.limit))

    found = _with_hub(options, work)
    rows = [("REPOSITORY", "DOWNLOADS", "LIKES", "CHANGED", "")]
    rows += [
        (one.repo, str(one.downloads), str(one.likes), (one.changed or "")[:10], "gated" if one.gated else "")
        for one in found
    ]
    command.print_rows(rows, found, options)
    return 0


def offers(options: argparse.Namespace) -> int:
    from gateway import model_files

    async def work(finding: Finding) -> Offers:
        return await finding.offers(options.name)

    found = _with_hub(options, work)
    rows = [("QUANTISATION", "SIZE", "FITS", "CONVERSATIONS", "TOKENS/S", "FILE")]
    for one in found.offers:
        fit = one.fit
        about = ("", "", "")
        if fit is not None:
            speed = "" if fit.tokens_per_s is None else f"about {fit.tokens_per_s:g}"
            about = ("yes" if fit.fits else "no", f"{fit.sessions} of {fit.session_tokens} tokens", speed)
        rows.append((one.quantisation, model_files.size(one.size_bytes), *about, one.files[0]))
    command.print_rows(rows, found, options)
    return 0


def look_up(options: argparse.Namespace) -> int:
    async def work(finding: Finding) -> tuple[File, list[Match]]:
        return await finding.look_up(options.id, options.repo)

    _, matches = _with_hub(options, work)
    rows = [("VERIFIED", "REPOSITORY", "FILE", "COMMIT")]
    rows += [("yes" if one.verified else "name only", one.repo, one.file, one.commit) for one in matches]
    command.print_rows(rows, matches, options)
    return int(not any(match.verified for match in matches))

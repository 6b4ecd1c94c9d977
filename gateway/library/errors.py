"""What can go wrong with files and hubs, said in one tree.

LibraryError
├── InvalidReference   the text is no name of a repository or file
├── NotFound           the hub has no such repository, revision or file, or hides it from this token
├── Gated              it is there, and its owner has to let this token in
├── HubUnavailable     the hub cannot be asked now; trying again is worth it
├── Offline            the hub may not be asked
├── NoSpace            the disk is full, or would be
├── Corrupt            what came is not what was promised
│   └── Misled         an answer leads astray or contradicts what was said; what came before it may be good
├── Unusable           a file or folder of this machine cannot be used that way
├── InUse              something refers to it, or is being done to it
├── Full               too much is under way
└── Cancelled          somebody stopped the pull
"""


class LibraryError(Exception):
    """Base of everything the library raises on purpose; the message is meant for a person and holds no secret."""


class InvalidReference(LibraryError):
    pass


class NotFound(LibraryError):
    pass


class Gated(LibraryError):
    pass


class HubUnavailable(LibraryError):
    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Offline(LibraryError):
    pass


class NoSpace(LibraryError):
    pass


class Corrupt(LibraryError):
    pass


class Misled(Corrupt):
    pass


class Cancelled(LibraryError):
    pass


class Unusable(LibraryError):
    pass


class InUse(LibraryError):
    pass


class Full(LibraryError):
    pass

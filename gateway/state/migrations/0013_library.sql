-- Files of models that are known here. `path` is where one is found, empty while it is not; `source` where it came from.
-- `status` is available, downloading, verifying, ready, quarantined or error, and `reason` says why. `facts` and `tags`
-- are JSON; `repo`, `commit_id` and `repo_file` say where a hub has the same content. Times are microseconds since 1970.
-- With `deleted_us` it is gone for everybody, and its bytes are being removed.
CREATE TABLE library_files (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    path TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    how TEXT NOT NULL,
    source TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    sha256 TEXT,
    blake3 TEXT,
    role TEXT,
    architecture TEXT,
    quantisation TEXT,
    facts TEXT,
    repo TEXT,
    commit_id TEXT,
    repo_file TEXT,
    tags TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    changed_us BIGINT NOT NULL,
    version BIGINT NOT NULL,
    deleted_us BIGINT
);
CREATE UNIQUE INDEX library_files_by_content ON library_files (sha256) WHERE status = 'ready' AND deleted_us IS NULL;
CREATE INDEX library_files_by_age ON library_files (created_us, id);
-- Files of the library in folders of other applications. `how` is link, hardlink, reflink or copy; `status` is ok, broken
-- (it can be made again) or foreign (something else is there now).
CREATE TABLE library_links (
    id TEXT PRIMARY KEY,
    file_id TEXT NOT NULL,
    path TEXT NOT NULL UNIQUE,
    how TEXT NOT NULL,
    status TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    checked_us BIGINT NOT NULL
);
CREATE INDEX library_links_by_file ON library_links (file_id);

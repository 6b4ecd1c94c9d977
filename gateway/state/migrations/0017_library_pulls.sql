-- Files that come from a hub, and datasets. `kind` is model or dataset; `done_bytes` is how much of a file is here, or
-- has been read, while somebody is at work on it; `dataset` is JSON about one. A file of a hub is known once in a place.
ALTER TABLE library_files ADD COLUMN kind TEXT NOT NULL DEFAULT 'model';
ALTER TABLE library_files ADD COLUMN done_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE library_files ADD COLUMN dataset TEXT;
CREATE UNIQUE INDEX library_files_by_origin ON library_files (place, kind, repo, commit_id, repo_file)
    WHERE how = 'pull' AND deleted_us IS NULL;

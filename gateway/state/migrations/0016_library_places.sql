-- In which folder a file of the library lies: replicas may have one each. One content is ready once in each of them.
ALTER TABLE library_files ADD COLUMN place TEXT NOT NULL DEFAULT '';
DROP INDEX library_files_by_content;
CREATE UNIQUE INDEX library_files_by_content ON library_files (place, sha256)
    WHERE status = 'ready' AND deleted_us IS NULL;

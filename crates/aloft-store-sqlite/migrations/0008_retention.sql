-- Giving up history (`aloft-store/src/retention.rs`).

-- Numbers that have been given out and must not be again, though the rows that had them are gone: of runs, of places in the
-- feed, of changes of runs.
CREATE TABLE marks (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    run     INTEGER NOT NULL,
    pos     INTEGER NOT NULL,
    changed INTEGER NOT NULL
) STRICT;
INSERT INTO marks VALUES (1, 0, 0, 0);

DROP TRIGGER run_index_created;
CREATE TRIGGER run_index_created AFTER INSERT ON actions WHEN NEW.name = 'a0' BEGIN
    INSERT INTO run_index
    SELECT r.id, (SELECT max(ifnull((SELECT max(changed) FROM run_index), 0), m.changed) + 1 FROM marks m),
           r.org, r.project, r.domain, r.name, r.created_at,
           r.created_by, r.source, NEW.phase, NEW.updated_at,
           CAST(NEW.state AS TEXT) ->> '$.started_at', NEW.ended_at, NEW.duration_ms,
           ifnull(json_array_length(CAST(NEW.state AS TEXT), '$.attempts'), 0),
           CAST(NEW.state AS TEXT) ->> '$.error.kind',
           ifnull(CAST(NEW.state AS TEXT) ->> '$.cache.status', 'disabled'), NEW.kind,
           CAST(NEW.state AS TEXT) ->> '$.seed.task.task.project',
           CAST(NEW.state AS TEXT) ->> '$.seed.task.task.domain',
           NEW.task_name, NEW.task_version, NEW.short_name, NEW.environment
    FROM runs r WHERE r.id = NEW.run_id;
END;

DROP TRIGGER run_index_changed;
CREATE TRIGGER run_index_changed AFTER UPDATE OF state ON actions WHEN NEW.name = 'a0' BEGIN
    UPDATE run_index SET
        changed = (SELECT max(ifnull((SELECT max(changed) FROM run_index), 0), m.changed) + 1 FROM marks m),
        phase = NEW.phase, updated_at = NEW.updated_at,
        started_at = CAST(NEW.state AS TEXT) ->> '$.started_at',
        ended_at = NEW.ended_at, duration_ms = NEW.duration_ms,
        attempts = ifnull(json_array_length(CAST(NEW.state AS TEXT), '$.attempts'), 0),
        error_kind = CAST(NEW.state AS TEXT) ->> '$.error.kind',
        cache_status = ifnull(CAST(NEW.state AS TEXT) ->> '$.cache.status', 'disabled')
    WHERE id = NEW.run_id;
END;

-- Runs that are gone for everybody, of which rows are still to be removed.
CREATE TABLE pruning (
    run_id  INTEGER PRIMARY KEY,
    org     TEXT NOT NULL
) STRICT;

-- The run that a blob belongs to alone; NULL for those that runs share.
ALTER TABLE blobs ADD COLUMN run_id INTEGER;
CREATE INDEX blobs_of_run ON blobs (run_id) WHERE run_id IS NOT NULL;

-- Which shared blobs the runs of a place use that were created on a day. What there was before uses were noted has them all
-- under no place: any run of that time may.
CREATE TABLE blob_uses (
    org     TEXT NOT NULL,
    project TEXT NOT NULL,
    domain  TEXT NOT NULL,
    day     INTEGER NOT NULL,               -- days since the epoch
    digest  TEXT NOT NULL,
    PRIMARY KEY (org, project, domain, day, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_uses_of_blob ON blob_uses (digest);
CREATE INDEX tasks_of_blob ON tasks (digest);
INSERT INTO blob_uses SELECT '', '', '', unixepoch() / 86400, digest FROM blobs;

-- What lists and the dispatcher read, as columns and sums: nothing is counted or taken out of `state` when it is asked for.

ALTER TABLE actions ADD COLUMN started_at INTEGER;
ALTER TABLE actions ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE actions ADD COLUMN error_kind TEXT;
ALTER TABLE actions ADD COLUMN cache_status TEXT NOT NULL DEFAULT 'disabled';   -- as the core words it
ALTER TABLE actions ADD COLUMN task_project TEXT;
ALTER TABLE actions ADD COLUMN task_domain TEXT;
ALTER TABLE actions ADD COLUMN ended_above INTEGER NOT NULL DEFAULT 0;          -- 1 if it ended because one above it did
DROP TRIGGER run_index_changed;
UPDATE actions SET
    started_at = CAST(state AS TEXT) ->> '$.started_at',
    attempts = ifnull(json_array_length(CAST(state AS TEXT), '$.attempts'), 0),
    error_kind = CAST(state AS TEXT) ->> '$.error.kind',
    cache_status = ifnull(CAST(state AS TEXT) ->> '$.cache.status', 'disabled'),
    task_project = CAST(state AS TEXT) ->> '$.seed.task.task.project',
    task_domain = CAST(state AS TEXT) ->> '$.seed.task.task.domain',
    ended_above = (CAST(state AS TEXT) ->> '$.aborted.above') IS NOT NULL;

DROP TRIGGER run_index_created;
CREATE TRIGGER run_index_created AFTER INSERT ON actions WHEN NEW.name = 'a0' BEGIN
    INSERT INTO run_index
    SELECT r.id, (SELECT max(ifnull((SELECT max(changed) FROM run_index), 0), m.changed) + 1 FROM marks m), r.org, r.project, r.domain, r.name, r.created_at,
           r.created_by, r.source, NEW.phase, NEW.updated_at, NEW.started_at, NEW.ended_at, NEW.duration_ms, NEW.attempts,
           NEW.error_kind, NEW.cache_status, NEW.kind, NEW.task_project, NEW.task_domain, NEW.task_name, NEW.task_version,
           NEW.short_name, NEW.environment
    FROM runs r WHERE r.id = NEW.run_id;
END;
CREATE TRIGGER run_index_changed AFTER UPDATE OF state ON actions WHEN NEW.name = 'a0' BEGIN
    UPDATE run_index SET
        changed = (SELECT max(ifnull((SELECT max(changed) FROM run_index), 0), m.changed) + 1 FROM marks m),
        phase = NEW.phase, updated_at = NEW.updated_at, started_at = NEW.started_at, ended_at = NEW.ended_at,
        duration_ms = NEW.duration_ms, attempts = NEW.attempts, error_kind = NEW.error_kind,
        cache_status = NEW.cache_status
    WHERE id = NEW.run_id;
END;

-- The writer keeps `task_runs`, each task once for many actions.
DROP TRIGGER task_runs_created;

-- What queues hold in each place, kept by the writer.
CREATE TABLE loads (
    org     TEXT NOT NULL,
    project TEXT NOT NULL,
    domain  TEXT NOT NULL,
    queue   TEXT NOT NULL,
    waiting INTEGER NOT NULL,                   -- actions that wait for a worker
    held    INTEGER NOT NULL,                   -- actions that a worker holds
    counted INTEGER NOT NULL,                   -- those of them that count against limits: without unfinished children
    memory  INTEGER NOT NULL,                   -- what these ask for together
    cpu     INTEGER NOT NULL,
    gpu     INTEGER NOT NULL,
    runs    INTEGER NOT NULL,                   -- runs whose root has been handed out and has not ended
    PRIMARY KEY (org, project, domain, queue)
) STRICT, WITHOUT ROWID;
INSERT INTO loads
SELECT r.org, r.project, r.domain, a.queue, count(*) FILTER (WHERE a.worker IS NULL), count(a.worker), sum(a.counted),
       sum(a.counted * a.asks_memory), sum(a.counted * a.asks_cpu), sum(a.counted * a.asks_gpu),
       count(*) FILTER (WHERE a.parent IS NULL AND r.started = 1)
FROM actions a JOIN runs r ON r.id = a.run_id WHERE a.ended_at IS NULL AND a.queue IS NOT NULL GROUP BY 1, 2, 3, 4;

-- Actions of each run that count against limits.
ALTER TABLE runs ADD COLUMN in_flight INTEGER NOT NULL DEFAULT 0;
UPDATE runs SET in_flight = (SELECT count(*) FROM actions a WHERE a.run_id = runs.id AND a.counted = 1) WHERE ended = 0;
DROP INDEX actions_counted_of_run;
DROP INDEX actions_counted_of_queue;
DROP INDEX actions_waiting;
DROP INDEX runs_in_flight;
ALTER TABLE actions DROP COLUMN counted;

-- Ended actions with children that have not: what is to be settled, without a look at all that lives.
CREATE INDEX actions_unsettled ON actions (run_id) WHERE ended_at IS NOT NULL AND open_children > 0;

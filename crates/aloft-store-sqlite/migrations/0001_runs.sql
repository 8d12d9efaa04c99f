-- Runs, their logs, and the projections of them. Times are microseconds since the epoch.

CREATE TABLE runs (
    id          INTEGER PRIMARY KEY,
    org         TEXT NOT NULL,
    project     TEXT NOT NULL,
    domain      TEXT NOT NULL,
    name        TEXT NOT NULL,
    seq         INTEGER NOT NULL,           -- number of the last event of its log
    created_at  INTEGER NOT NULL,
    created_by  TEXT NOT NULL,
    source      INTEGER NOT NULL,
    info        BLOB NOT NULL,              -- RunInfo as JSON
    UNIQUE (org, project, domain, name)
) STRICT;
CREATE INDEX runs_by_time ON runs (org, project, domain, created_at, id);

-- The current state of each action; `state` is the fold of its events, the columns are for filters and orders.
CREATE TABLE actions (
    id          INTEGER PRIMARY KEY,
    run_id      INTEGER NOT NULL REFERENCES runs (id),
    name        TEXT NOT NULL,
    parent      TEXT,
    depth       INTEGER NOT NULL,
    grp         TEXT NOT NULL,
    kind        INTEGER NOT NULL,
    phase       INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    ended_at    INTEGER,
    duration_ms INTEGER,
    task_name   TEXT NOT NULL,
    task_version TEXT NOT NULL,
    short_name  TEXT NOT NULL,
    environment TEXT NOT NULL,
    ready_at    INTEGER,                    -- when a worker may take it, while it waits for one
    due_at      INTEGER,                    -- when its next time limit passes
    worker      TEXT,                       -- who holds its live lease
    state       BLOB NOT NULL,              -- ActionState as JSON
    UNIQUE (run_id, name)
) STRICT;
CREATE INDEX actions_by_parent ON actions (run_id, parent);
CREATE INDEX actions_ready ON actions (ready_at, depth) WHERE ready_at IS NOT NULL;
CREATE INDEX actions_due ON actions (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX actions_held ON actions (worker) WHERE worker IS NOT NULL;
CREATE INDEX actions_live ON actions (run_id, parent) WHERE ended_at IS NULL;

-- The logs of all runs. `pos` is commit order, because there is one writer.
CREATE TABLE events (
    pos     INTEGER PRIMARY KEY,
    run_id  INTEGER NOT NULL REFERENCES runs (id),
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    body    BLOB NOT NULL                   -- Event as JSON
) STRICT;
CREATE UNIQUE INDEX events_by_run ON events (run_id, seq);

CREATE TABLE blobs (
    digest  TEXT PRIMARY KEY,
    bytes   BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    id          INTEGER PRIMARY KEY,
    org         TEXT NOT NULL,
    project     TEXT NOT NULL,
    domain      TEXT NOT NULL,
    name        TEXT NOT NULL,
    version     TEXT NOT NULL,
    digest      TEXT NOT NULL,
    short_name  TEXT NOT NULL,
    environment TEXT NOT NULL,
    entrypoint  INTEGER NOT NULL,
    deployed_at INTEGER NOT NULL,
    deployed_by TEXT NOT NULL,              -- subject's identifier
    deployer    BLOB NOT NULL,              -- Subject as JSON
    UNIQUE (org, project, domain, name, version)
) STRICT;
CREATE INDEX tasks_by_time ON tasks (org, project, domain, name, deployed_at, id);

CREATE TABLE projects (
    org     TEXT NOT NULL,
    id      TEXT NOT NULL,
    body    BLOB NOT NULL,                  -- Project as JSON
    PRIMARY KEY (org, id)
) STRICT, WITHOUT ROWID;

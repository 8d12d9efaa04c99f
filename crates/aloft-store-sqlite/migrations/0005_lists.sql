-- What lists and watches read. Kept by triggers, so that whoever writes a run or an action keeps it in the same transaction.

-- One narrow row for each run, so that a look at all runs of a project reads little: the rows of `runs` and `actions` hold
-- texts. The columns after `source` are those of the run's root action.
CREATE TABLE run_index (
    id           INTEGER PRIMARY KEY,        -- of the run
    changed      INTEGER NOT NULL,           -- place of its last change among the changes of all runs
    org          TEXT NOT NULL,
    project      TEXT NOT NULL,
    domain       TEXT NOT NULL,
    name         TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    source       INTEGER NOT NULL,
    phase        INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    started_at   INTEGER,
    ended_at     INTEGER,
    duration_ms  INTEGER,
    attempts     INTEGER NOT NULL,
    error_kind   TEXT,
    cache_status TEXT NOT NULL,              -- as the core words it
    kind         INTEGER NOT NULL,
    task_project TEXT,
    task_domain  TEXT,
    task_name    TEXT NOT NULL,
    task_version TEXT NOT NULL,
    short_name   TEXT NOT NULL,
    environment  TEXT NOT NULL
) STRICT;

-- A JSON text in a BLOB is cast: SQLite would take it for its own binary form.
CREATE TRIGGER run_index_created AFTER INSERT ON actions WHEN NEW.name = 'a0' BEGIN
    INSERT INTO run_index
    SELECT r.id, (SELECT ifnull(max(changed), 0) + 1 FROM run_index), r.org, r.project, r.domain, r.name, r.created_at,
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

CREATE TRIGGER run_index_changed AFTER UPDATE OF state ON actions WHEN NEW.name = 'a0' BEGIN
    UPDATE run_index SET
        changed = (SELECT ifnull(max(changed), 0) + 1 FROM run_index),
        phase = NEW.phase, updated_at = NEW.updated_at,
        started_at = CAST(NEW.state AS TEXT) ->> '$.started_at',
        ended_at = NEW.ended_at, duration_ms = NEW.duration_ms,
        attempts = ifnull(json_array_length(CAST(NEW.state AS TEXT), '$.attempts'), 0),
        error_kind = CAST(NEW.state AS TEXT) ->> '$.error.kind',
        cache_status = ifnull(CAST(NEW.state AS TEXT) ->> '$.cache.status', 'disabled')
    WHERE id = NEW.run_id;
END;

INSERT INTO run_index
SELECT r.id, r.id, r.org, r.project, r.domain, r.name, r.created_at, r.created_by, r.source, a.phase, a.updated_at,
       CAST(a.state AS TEXT) ->> '$.started_at', a.ended_at, a.duration_ms,
       ifnull(json_array_length(CAST(a.state AS TEXT), '$.attempts'), 0),
       CAST(a.state AS TEXT) ->> '$.error.kind',
       ifnull(CAST(a.state AS TEXT) ->> '$.cache.status', 'disabled'), a.kind,
       CAST(a.state AS TEXT) ->> '$.seed.task.task.project',
       CAST(a.state AS TEXT) ->> '$.seed.task.task.domain',
       a.task_name, a.task_version, a.short_name, a.environment
FROM runs r JOIN actions a ON a.run_id = r.id AND a.name = 'a0';

CREATE UNIQUE INDEX run_index_by_change ON run_index (changed);
-- The newest runs of a project, of an organisation, of a phase, of a task.
CREATE INDEX run_index_by_time ON run_index (org, project, domain, created_at);
CREATE INDEX run_index_by_org ON run_index (org, created_at);
CREATE INDEX run_index_by_phase ON run_index (org, project, domain, phase, created_at);
CREATE INDEX run_index_by_task ON run_index (org, project, domain, task_name, created_at);
CREATE INDEX run_index_live ON run_index (org, project, domain) WHERE ended_at IS NULL;
DROP INDEX runs_by_time;

CREATE TABLE run_labels (
    run_id INTEGER NOT NULL,
    key    TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (run_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX run_labels_by_value ON run_labels (key, value, run_id);

CREATE TRIGGER run_labels_created AFTER INSERT ON runs BEGIN
    INSERT INTO run_labels
    SELECT NEW.id, j.key, j.value FROM json_each(CAST(NEW.info AS TEXT), '$.labels') j;
END;

INSERT INTO run_labels
SELECT r.id, j.key, j.value FROM runs r, json_each(CAST(r.info AS TEXT), '$.labels') j;

-- The actions of a run in the order of lists, and those that wait for somebody (phase 9).
CREATE INDEX actions_by_time ON actions (run_id, created_at);
CREATE INDEX actions_paused ON actions (run_id) WHERE phase = 9;

-- The run that each task was last part of: by version, and by name alone under the empty version.
CREATE TABLE task_runs (
    org     TEXT NOT NULL,
    project TEXT NOT NULL,
    domain  TEXT NOT NULL,
    name    TEXT NOT NULL,
    version TEXT NOT NULL,
    run_id  INTEGER NOT NULL,
    PRIMARY KEY (org, project, domain, name, version)
) STRICT, WITHOUT ROWID;

-- Kind 1 is a task. The newer of two runs is the one with the larger row number.
CREATE TRIGGER task_runs_created AFTER INSERT ON actions WHEN NEW.kind = 1 BEGIN
    INSERT INTO task_runs
    SELECT r.org, ifnull(CAST(NEW.state AS TEXT) ->> '$.seed.task.task.project', ''),
           ifnull(CAST(NEW.state AS TEXT) ->> '$.seed.task.task.domain', ''), NEW.task_name, v.value, r.id
    FROM runs r, json_each(json_array('', NEW.task_version)) v WHERE r.id = NEW.run_id
    ON CONFLICT DO UPDATE SET run_id = excluded.run_id WHERE excluded.run_id > run_id;
END;

INSERT INTO task_runs
SELECT r.org, ifnull(CAST(a.state AS TEXT) ->> '$.seed.task.task.project', ''),
       ifnull(CAST(a.state AS TEXT) ->> '$.seed.task.task.domain', ''), a.task_name, v.value, r.id
FROM actions a JOIN runs r ON r.id = a.run_id, json_each(json_array('', a.task_version)) v WHERE a.kind = 1
ON CONFLICT DO UPDATE SET run_id = excluded.run_id WHERE excluded.run_id > run_id;

-- Each deployed name once, with its newest version.
CREATE TABLE task_names (
    id      INTEGER PRIMARY KEY,
    org     TEXT NOT NULL,
    project TEXT NOT NULL,
    domain  TEXT NOT NULL,
    name    TEXT NOT NULL,
    newest  INTEGER NOT NULL,                -- of `tasks`
    UNIQUE (org, project, domain, name)
) STRICT;

CREATE TRIGGER task_names_deployed AFTER INSERT ON tasks BEGIN
    INSERT INTO task_names (org, project, domain, name, newest)
    VALUES (NEW.org, NEW.project, NEW.domain, NEW.name, NEW.id)
    ON CONFLICT DO UPDATE SET newest = NEW.id
    WHERE (SELECT (t.deployed_at, t.id) < (NEW.deployed_at, NEW.id) FROM tasks t WHERE t.id = newest);
END;

INSERT INTO task_names (org, project, domain, name, newest)
SELECT t.org, t.project, t.domain, t.name, t.id FROM tasks t
WHERE NOT EXISTS (SELECT 1 FROM tasks n WHERE n.org = t.org AND n.project = t.project AND n.domain = t.domain
                  AND n.name = t.name AND (n.deployed_at, n.id) > (t.deployed_at, t.id));

-- Orders of lists that would change from page to page, kept when the first page is made (`aloft-store/src/page.rs`).
CREATE TABLE list_orders (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: a token names it
    list    INTEGER NOT NULL,                -- fingerprint of the list it belongs to
    made_at INTEGER NOT NULL,
    rows    INTEGER NOT NULL
) STRICT;

-- Their row numbers, 4096 to a part, eight bytes each, the smallest first.
CREATE TABLE list_order_rows (
    list_order INTEGER NOT NULL,
    part       INTEGER NOT NULL,
    ids        BLOB NOT NULL,
    PRIMARY KEY (list_order, part)
) STRICT, WITHOUT ROWID;

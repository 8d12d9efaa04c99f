-- Queues and limits of projects: small tables, which the dispatcher reads as a whole. `generation` is that of the body.

CREATE TABLE queues (
    org         TEXT NOT NULL,
    name        TEXT NOT NULL,
    generation  INTEGER NOT NULL,
    deleted_at  INTEGER,
    body        BLOB NOT NULL,              -- Queue as JSON
    PRIMARY KEY (org, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE project_limits (
    org         TEXT NOT NULL,
    project     TEXT NOT NULL,
    domain      TEXT NOT NULL,              -- empty for all domains together
    generation  INTEGER NOT NULL,
    body        BLOB NOT NULL,              -- ProjectLimits as JSON
    PRIMARY KEY (org, project, domain)
) STRICT, WITHOUT ROWID;

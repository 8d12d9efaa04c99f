-- Settings of the levels, every version of them, and domains. Times are microseconds since the epoch.

CREATE TABLE settings (
    org         TEXT NOT NULL,
    domain      TEXT NOT NULL,              -- empty for the organisation
    project     TEXT NOT NULL,              -- empty for the organisation and for a domain
    version     INTEGER NOT NULL,
    body        BLOB NOT NULL,              -- flyteidl2.settings.Settings
    edited_at   INTEGER NOT NULL,
    edited_by   BLOB NOT NULL,              -- Subject as JSON
    request     TEXT NOT NULL,
    PRIMARY KEY (org, domain, project, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE domains (
    pos         INTEGER PRIMARY KEY,        -- the order of their creation
    org         TEXT NOT NULL,
    id          TEXT NOT NULL,
    name        TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    UNIQUE (org, id)
) STRICT;

-- Until now these three were fixed, and there may be runs in them.
INSERT INTO domains (org, id, name, created_at)
    SELECT o.org, d.column1, d.column1, 0
    FROM (SELECT DISTINCT org FROM projects) o, (VALUES ('development'), ('staging'), ('production')) d;

-- What a run is created by, read once for many runs: whoever creates one by what it has read before says by which revision, and
-- is refused if there is another. Programs of the version before change it too, by these triggers.
CREATE TABLE site_revision (revision bigint NOT NULL);
INSERT INTO site_revision VALUES (1);

CREATE FUNCTION change_sites() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE site_revision SET revision = revision + 1;
    RETURN NULL;
END $$;

CREATE TRIGGER change_sites AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON projects
    FOR EACH STATEMENT EXECUTE FUNCTION change_sites();
CREATE TRIGGER change_sites AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON domains
    FOR EACH STATEMENT EXECUTE FUNCTION change_sites();
CREATE TRIGGER change_sites AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON settings
    FOR EACH STATEMENT EXECUTE FUNCTION change_sites();

-- When the next action becomes ready is asked of this index alone, and it is asked nothing else: of what is ready in one queue of
-- one run, `live_ready` tells, however little the planner knows of the table.
DROP INDEX live_ready_next;
CREATE INDEX live_ready_next ON live ((ready_at + 0)) WHERE ready_at IS NOT NULL;

-- What a run is created by, read once for many runs: whoever creates one by what it has read before says by which revision, and
-- is refused if there is another.
CREATE TABLE site_revision (revision INTEGER NOT NULL) STRICT;
INSERT INTO site_revision VALUES (1);

CREATE TRIGGER projects_inserted AFTER INSERT ON projects BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER projects_updated AFTER UPDATE ON projects BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER projects_deleted AFTER DELETE ON projects BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER domains_inserted AFTER INSERT ON domains BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER domains_updated AFTER UPDATE ON domains BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER domains_deleted AFTER DELETE ON domains BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER settings_inserted AFTER INSERT ON settings BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER settings_updated AFTER UPDATE ON settings BEGIN UPDATE site_revision SET revision = revision + 1; END;
CREATE TRIGGER settings_deleted AFTER DELETE ON settings BEGIN UPDATE site_revision SET revision = revision + 1; END;

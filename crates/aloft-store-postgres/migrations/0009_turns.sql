-- Whose turn to hand out work is the last one that was taken, by a number. It is on the row that each commit takes in its turn, so
-- what is handed out is either committed before another takes a turn, or refused.
ALTER TABLE feed ADD COLUMN turn BIGINT NOT NULL DEFAULT 0;

-- Ends a transaction that hands out work in a turn after which another was taken.
CREATE FUNCTION refuse_turn() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'another control plane hands out work by now'
        USING ERRCODE = 'ALF02';
END $$;

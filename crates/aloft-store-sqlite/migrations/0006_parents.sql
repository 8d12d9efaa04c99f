-- Parents that wait to be tried again while their children go on: they count against no limit, and wait in no line.
CREATE INDEX actions_ready_parents ON actions (run_id, queue, ready_at) WHERE ready_at IS NOT NULL AND open_children > 0;

-- Which evaluator's totals of which day are logged.

CREATE TABLE evaluation_total (
    -- Id of the evaluator. Never changes.
    evaluator TEXT NOT NULL,
    -- Day (UTC) since the Unix epoch. Never changes.
    day INTEGER NOT NULL,
    -- SHA-256 of the totals as signed, 32 bytes. Never changes.
    digest BLOB NOT NULL,
    -- Entry that holds them. Never changes.
    entry_index INTEGER NOT NULL,
    PRIMARY KEY (evaluator, day)
) WITHOUT ROWID;

-- What an evaluator counts before it answers.

CREATE TABLE evaluation (
    -- Day (UTC) since the Unix epoch. Never changes.
    day INTEGER NOT NULL,
    -- Id of the administration whose node asked. Never changes.
    administration TEXT NOT NULL,
    -- Identifiers evaluated; grows.
    evaluated INTEGER NOT NULL,
    -- Identifiers refused because the quota was used up; grows.
    refused INTEGER NOT NULL,
    -- Whether the directory has logged the day's totals.
    logged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, administration)
) WITHOUT ROWID;

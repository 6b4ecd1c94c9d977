-- Alerts and to whom they are still to be told: one row per channel. `id` names what happened, such as a threshold of a
-- budget in a period, so that it is told once. Times are microseconds since 1970, `payload` is JSON. `done_us` null: it
-- waits, and is tried next at `next_us`.
CREATE TABLE alerts (
    id TEXT NOT NULL,
    channel TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_us BIGINT NOT NULL,
    next_us BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    done_us BIGINT,
    outcome TEXT NOT NULL,
    PRIMARY KEY (id, channel)
);
CREATE INDEX alerts_by_turn ON alerts (next_us) WHERE done_us IS NULL;

-- The tables that `helix analytics` writes, and the views over them. SCHEMA in schema.py names their version: whoever
-- changes a line here makes it one more, and the database is built anew from the log.
-- `*_at` is UTC; `*_ms` are milliseconds; a GPU's name is <node>-<index>; a model is its slug in the catalogue.

CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR);

-- The last sequence of each stream that the rows below contain; committed together with them.
CREATE TABLE position (stream VARCHAR PRIMARY KEY, seq BIGINT, logged_at TIMESTAMPTZ);

-- The writer's own: its fold at some sequence, from which it goes on after a restart with the help of `events`.
CREATE TABLE fold (seq BIGINT, state BLOB);

-- Every stored message of LOG. What is unreadable has neither event nor body here; set_aside has its bytes.
CREATE TABLE events (
  seq BIGINT, logged_at TIMESTAMPTZ, subject VARCHAR, event VARCHAR, session VARCHAR, turn INTEGER, attempt INTEGER,
  gpu VARCHAR, model VARCHAR,
  happened BOOLEAN,          -- false: it could not happen where it stands, and the fold passed over it
  trace VARCHAR,             -- W3C traceparent
  body JSON
);

-- Messages that are no fact of ours (any more, or yet): not JSON, an unknown tag, a subject that does not fit.
CREATE TABLE set_aside (stream VARCHAR, seq BIGINT, logged_at TIMESTAMPTZ, subject VARCHAR, reason VARCHAR, body BLOB);

-- Down-sampled with age: `span_s` is the time that a row stands for, `samples` how many heartbeats were in it.
CREATE TABLE heartbeats (
  logged_at TIMESTAMPTZ, span_s INTEGER, samples INTEGER, gpu VARCHAR, incarnation VARCHAR, model VARCHAR,
  utilisation DOUBLE, utilisation_max DOUBLE, memory_used_bytes BIGINT, memory_total_bytes BIGINT,
  temperature_c DOUBLE, power_w DOUBLE, slots_used DOUBLE, stalled_ms BIGINT
);

CREATE TABLE sessions (
  session VARCHAR, owner VARCHAR, mode VARCHAR, type VARCHAR, model VARCHAR, adapter VARCHAR, name VARCHAR,
  priority INTEGER, state VARCHAR, created_at TIMESTAMPTZ, last_at TIMESTAMPTZ, closed_at TIMESTAMPTZ,
  turns INTEGER, prompt_tokens BIGINT, cached_tokens BIGINT, completion_tokens BIGINT,
  gpu VARCHAR,               -- that holds it now
  held_ms BIGINT             -- how long it held slots, up to its last release
);

-- One row a turn. `how`: 'queued' went through the door, 'continued' straight to the GPU that held the session.
CREATE TABLE turns (
  seq BIGINT,                -- of the fact that opened it
  session VARCHAR, turn INTEGER, owner VARCHAR, mode VARCHAR, type VARCHAR, model VARCHAR, adapter VARCHAR,
  how VARCHAR, state VARCHAR, attempts INTEGER, gpu VARCHAR, kind VARCHAR,
  slots INTEGER,             -- the coefficient of that GPU when the turn started
  neighbours INTEGER,        -- sessions that the GPU held then, this one included
  said_at TIMESTAMPTZ, admitted_at TIMESTAMPTZ, started_at TIMESTAMPTZ, first_token_at TIMESTAMPTZ, ended_at TIMESTAMPTZ,
  place INTEGER,             -- in the queue on arrival, 1 the next
  wait_ms BIGINT,            -- said to first admitted; 0 for a continued turn
  start_ms BIGINT,           -- said to started, of the attempt that ended it
  first_token_ms BIGINT,     -- said to first token
  total_ms BIGINT,           -- said to ended
  compute_ms BIGINT,         -- task in hand to ended, as the runner measured
  queue_ms BIGINT,           -- of that, before the first computation
  estimated_ms BIGINT, reservation_ms BIGINT, reason VARCHAR,
  prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER, finish_reason VARCHAR,
  error_code VARCHAR, error VARCHAR
);

CREATE TABLE admissions (
  seq BIGINT, logged_at TIMESTAMPTZ, session VARCHAR, turn INTEGER, attempt INTEGER, owner VARCHAR, mode VARCHAR, type VARCHAR,
  model VARCHAR, priority INTEGER, waited_ms BIGINT, estimated_ms BIGINT, reservation_ms BIGINT, reason VARCHAR,
  place INTEGER,             -- on arrival
  passed INTEGER,            -- turns of its queue that came later and were admitted before it
  waiting INTEGER,           -- turns left in its queue
  decided_seq BIGINT, decided_at TIMESTAMPTZ
);

-- What a GPU held, from one change to the next. `to_at` is NULL for what holds now. `state`: 'joined' (it has no
-- model yet), 'assigned' (it loads one), 'ready', 'draining' (it takes nobody any more).
CREATE TABLE gpu_occupancy (
  seq BIGINT,                -- of the fact that began it
  gpu VARCHAR, incarnation VARCHAR, kind VARCHAR, pool VARCHAR, state VARCHAR, purpose VARCHAR, model VARCHAR,
  slots INTEGER, sessions INTEGER, from_at TIMESTAMPTZ, to_at TIMESTAMPTZ
);

CREATE TABLE cold_starts (
  seq BIGINT, gpu VARCHAR, incarnation VARCHAR, kind VARCHAR, pool VARCHAR, purpose VARCHAR, model VARCHAR,
  reason VARCHAR, assigned_at TIMESTAMPTZ,
  ready_at TIMESTAMPTZ,      -- NULL: the GPU left, or was lost, before it was
  load_ms BIGINT
);

CREATE TABLE finetune_steps (
  seq BIGINT, logged_at TIMESTAMPTZ, session VARCHAR, turn INTEGER, attempt INTEGER, gpu VARCHAR, step INTEGER, steps INTEGER,
  loss DOUBLE, detail JSON, checkpoint VARCHAR[]
);

-- Open turns that went back to the door.
CREATE TABLE requeues (
  seq BIGINT, logged_at TIMESTAMPTZ, session VARCHAR, turn INTEGER, attempt INTEGER, owner VARCHAR, model VARCHAR, gpu VARCHAR,
  reason VARCHAR, error_code VARCHAR, error VARCHAR
);

-- Slots given back.
CREATE TABLE releases (
  seq BIGINT, logged_at TIMESTAMPTZ, session VARCHAR, owner VARCHAR, model VARCHAR, gpu VARCHAR, reason VARCHAR,
  held_ms BIGINT, silent_ms BIGINT
);

CREATE TABLE fleet_sizes (seq BIGINT, logged_at TIMESTAMPTZ, pool VARCHAR, size INTEGER, reason VARCHAR);

CREATE TABLE policies (seq BIGINT, logged_at TIMESTAMPTZ, policy JSON);

CREATE VIEW waits AS
  SELECT session, turn, owner, mode, type, model, state, place, said_at, admitted_at, wait_ms, estimated_ms, reservation_ms
  FROM turns WHERE how = 'queued';

CREATE VIEW estimate_error AS
  SELECT seq, logged_at, session, turn, model, mode, estimated_ms, waited_ms, waited_ms - estimated_ms AS error_ms
  FROM admissions WHERE attempt = 1 AND estimated_ms IS NOT NULL;

-- What it cost others that GPUs were kept free.
CREATE VIEW reservations AS
  SELECT date_trunc('hour', logged_at) AS hour, mode, model, count(*) AS admitted, count(*) FILTER (reservation_ms > 0) AS delayed,
         sum(reservation_ms)::BIGINT AS reservation_ms, sum(waited_ms)::BIGINT AS waited_ms
  FROM admissions WHERE attempt = 1 GROUP BY ALL;  -- a later attempt's figures contain the first one's

CREATE VIEW finetune_runs AS
  SELECT s.session, s.name, s.owner, s.model, t.state, t.attempts, t.said_at, t.started_at, t.ended_at, t.wait_ms,
         max(f.step) AS step, max(f.steps) AS steps, arg_min(f.loss, f.seq) AS first_loss, arg_max(f.loss, f.seq) AS last_loss,
         list({'step': f.step, 'loss': f.loss} ORDER BY f.seq) FILTER (f.loss IS NOT NULL) AS losses
  FROM sessions s JOIN turns t USING (session) LEFT JOIN finetune_steps f USING (session, turn)
  WHERE s.mode = 'finetune' GROUP BY ALL;

CREATE VIEW adapters AS
  SELECT s.owner, s.adapter, s.model, count(DISTINCT s.session) AS sessions, count(t.turn) AS turns,
         sum(t.completion_tokens)::BIGINT AS completion_tokens, min(s.created_at) AS first_used_at, max(t.said_at) AS last_used_at
  FROM sessions s LEFT JOIN turns t USING (session) WHERE s.adapter IS NOT NULL GROUP BY ALL;

CREATE VIEW owners AS
  SELECT owner, count(DISTINCT session) AS sessions, count(*) AS turns,
         count(*) FILTER (state NOT IN ('completed', 'failed', 'cancelled')) AS open_turns,
         count(*) FILTER (state = 'failed') AS failed_turns,
         sum(prompt_tokens)::BIGINT AS prompt_tokens, sum(completion_tokens)::BIGINT AS completion_tokens,
         median(wait_ms) FILTER (how = 'queued') AS wait_p50_ms, quantile_cont(wait_ms, 0.95) FILTER (how = 'queued') AS wait_p95_ms,
         max(wait_ms) AS wait_max_ms
  FROM turns GROUP BY ALL;

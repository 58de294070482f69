-- How long turns waited at the door, by model: those admitted, those there now (also again, when their GPU was lost), those that gave up.
-- since: instant  only turns said from then on
-- until: instant  only turns said before
-- owner: text  only this owner's
SELECT mode, type, model,
       count(*) FILTER (how = 'queued' AND admitted_at IS NOT NULL) AS admitted,
       count(*) FILTER (state = 'queued') AS waiting,
       count(*) FILTER (how = 'queued' AND admitted_at IS NULL AND state IN ('failed', 'cancelled')) AS gave_up,
       round(median(waited_ms) / 1000, 3) AS p50_s, round(quantile_cont(waited_ms, 0.95) / 1000, 3) AS p95_s,
       round(quantile_cont(waited_ms, 0.99) / 1000, 3) AS p99_s, round(max(waited_ms) / 1000, 3) AS max_s,
       round(avg(waited_ms) / 1000, 3) AS mean_s
FROM (SELECT *, CASE WHEN how = 'queued' THEN wait_ms END AS waited_ms FROM turns WHERE how = 'queued' OR state = 'queued')
WHERE said_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND said_at < coalesce($until::TIMESTAMPTZ, 'infinity')
  AND ($owner::VARCHAR IS NULL OR owner = $owner::VARCHAR)
GROUP BY ALL ORDER BY mode, type, model

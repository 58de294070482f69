-- Time to the first token by kind of GPU, model and coefficient: from being said, and from being started.
-- since: instant  only turns said from then on
-- until: instant  only turns said before
-- model: text  only this model
-- target_s: number = 1.5  how soon a continued turn should begin to answer
-- Not counted: turns on a GPU that drained, whose coefficient is 0 from then on.
SELECT kind, model, slots, count(*) AS turns, round(avg(neighbours), 2) AS sessions_on_gpu,
       round(median(first_token_ms)) AS said_p50_ms, round(quantile_cont(first_token_ms, 0.95)) AS said_p95_ms,
       round(median(ms)) AS started_p50_ms, round(quantile_cont(ms, 0.95)) AS started_p95_ms,
       count(*) FILTER (continued) AS continued,
       round(quantile_cont(first_token_ms, 0.95) FILTER (continued)) AS continued_p95_ms,
       round(avg((first_token_ms <= $target_s::DOUBLE * 1000)::INTEGER) FILTER (continued), 4) AS continued_within
FROM (
  SELECT *, turn > 1 AS continued, epoch_ms(first_token_at) - epoch_ms(started_at) AS ms
  FROM turns WHERE first_token_ms IS NOT NULL AND mode = 'create' AND type = 'text' AND slots > 0
)
WHERE said_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND said_at < coalesce($until::TIMESTAMPTZ, 'infinity')
  AND ($model::VARCHAR IS NULL OR model = $model::VARCHAR)
GROUP BY ALL ORDER BY kind, model, slots

-- How often and how long GPUs loaded a model before they could serve it, by kind, model and purpose.
-- since: instant  only those ready from then on
-- until: instant  only those ready before
SELECT kind, model, purpose, count(*) AS starts, count(*) FILTER (ready_at IS NULL) AS never_ready, count(DISTINCT gpu) AS gpus,
       round(median(load_ms) / 1000, 3) AS load_p50_s, round(quantile_cont(load_ms, 0.95) / 1000, 3) AS load_p95_s,
       round(max(load_ms) / 1000, 3) AS load_max_s,
       round(median(epoch_ms(ready_at) - epoch_ms(assigned_at)) / 1000, 3) AS assigned_to_ready_p50_s,
       mode(reason) AS most_often, max(ready_at) AS last_at
FROM cold_starts
WHERE coalesce(ready_at, assigned_at) >= coalesce($since::TIMESTAMPTZ, '-infinity')
  AND coalesce(ready_at, assigned_at) < coalesce($until::TIMESTAMPTZ, 'infinity')
GROUP BY ALL ORDER BY starts DESC, kind, model, purpose

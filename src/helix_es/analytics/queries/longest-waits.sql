-- Who waited longest at the door, and why: place on arrival, slots then, who passed, the reservation, cold starts.
-- since: instant  only turns said from then on
-- until: instant  only turns said before
-- model: text  only this model
-- most: count = 20  so many
WITH known AS (SELECT max(logged_at) AS as_of FROM position),
longest AS (
  SELECT t.*, coalesce(t.wait_ms, epoch_ms(coalesce(t.ended_at, as_of)) - epoch_ms(t.said_at)) AS waited_ms,
         coalesce(t.admitted_at, t.ended_at, as_of) AS until_at
  FROM turns t, known
  WHERE t.how = 'queued'
    AND t.said_at >= coalesce($since::TIMESTAMPTZ, '-infinity') AND t.said_at < coalesce($until::TIMESTAMPTZ, 'infinity')
    AND ($model::VARCHAR IS NULL OR t.model = $model::VARCHAR)
  ORDER BY waited_ms DESC, t.said_at, t.session, t.turn LIMIT $most::BIGINT
),
then_there AS (
  SELECT l.session, l.turn, count(o.gpu) AS gpus, coalesce(sum(o.slots), 0) AS slots, coalesce(sum(o.sessions), 0) AS held
  FROM longest l LEFT JOIN gpu_occupancy o
    ON o.model = l.model AND o.purpose = CASE l.mode WHEN 'finetune' THEN 'batch' ELSE 'chat' END
   AND o.from_at <= l.said_at AND coalesce(o.to_at, 'infinity') > l.said_at
  GROUP BY ALL
),
starts AS (
  SELECT l.session, l.turn, count(c.gpu) AS loads, max(c.load_ms) AS load_ms
  FROM longest l LEFT JOIN cold_starts c
    ON c.model = l.model AND c.assigned_at < l.until_at AND c.ready_at > l.said_at
  GROUP BY ALL
),
first_admission AS (
  SELECT session, turn, arg_min(passed, attempt) AS passed FROM admissions GROUP BY ALL
)
SELECT l.session, l.turn, l.owner, l.mode, l.model, l.said_at, round(l.waited_ms / 1000, 3) AS wait_s,
       round(l.estimated_ms / 1000, 3) AS told_s, l.state,
       concat_ws('; ',
         CASE WHEN l.admitted_at IS NULL AND l.ended_at IS NULL THEN 'still waits'
              WHEN l.admitted_at IS NULL THEN 'never admitted' END,
         CASE WHEN l.place > 1 THEN (l.place - 1)::VARCHAR || ' ahead on arrival'
              WHEN l.place = 1 THEN 'first in its queue' END,
         CASE WHEN t.gpus = 0 THEN 'no GPU served ' || l.model || ' then'
              ELSE t.held::VARCHAR || ' of ' || t.slots::VARCHAR || ' slots held then' END,
         CASE WHEN f.passed > 0 THEN f.passed::VARCHAR || ' that came later went first' END,
         CASE WHEN l.reservation_ms > 0 THEN round(l.reservation_ms / 1000, 1)::VARCHAR || ' s of it for the reservation' END,
         CASE WHEN s.loads > 0 THEN s.loads::VARCHAR || ' cold start(s) meanwhile, up to '
                                    || coalesce(round(s.load_ms / 1000, 1)::VARCHAR, '?') || ' s' END,
         CASE WHEN l.reason IS NOT NULL THEN 'admitted since ' || l.reason END
       ) AS why
FROM longest l
JOIN then_there t USING (session, turn) JOIN starts s USING (session, turn)
LEFT JOIN first_admission f USING (session, turn)
ORDER BY l.waited_ms DESC, l.said_at, l.session, l.turn

-- What each owner used: sessions, turns, tokens, waits, and how long their sessions held slots.
-- most: count = 100  so many
SELECT o.owner, o.sessions, o.turns, o.open_turns, o.failed_turns, o.prompt_tokens, o.completion_tokens,
       round(o.wait_p50_ms / 1000, 3) AS wait_p50_s, round(o.wait_p95_ms / 1000, 3) AS wait_p95_s,
       round(o.wait_max_ms / 1000, 3) AS wait_max_s, round(h.held_ms / 3600000, 3) AS slot_hours
FROM owners o LEFT JOIN (SELECT owner, sum(held_ms) AS held_ms FROM sessions GROUP BY owner) h ON h.owner IS NOT DISTINCT FROM o.owner
ORDER BY o.turns DESC, o.owner LIMIT $most::BIGINT

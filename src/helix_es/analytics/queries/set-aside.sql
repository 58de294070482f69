-- Stored messages that are no fact of ours, the newest first: where they stand, why, and how they begin.
-- most: count = 50  so many
SELECT stream, seq, logged_at, subject, reason, octet_length(body) AS bytes,
       left(body::VARCHAR, 80) AS begins
FROM set_aside ORDER BY logged_at DESC, stream, seq DESC LIMIT $most::BIGINT

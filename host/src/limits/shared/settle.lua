-- Ends a request: its places are free, and the tokens that it used stand in the
-- place of those it reserved.
-- KEYS: one for each limit of tokens or of requests at work
-- ARGV: the request's id; then for each limit whether it is a bucket or of
--   requests at work, the most, and how many more units it used than it took
for i, key in ipairs(KEYS) do
  if ARGV[3 * i - 1] == 'bucket' then
    local level, limit = read(key)
    level = math.max(0, level + ARGV[3 * i + 1] * WINDOW)
    -- it may have been admitted by another limit than the one in force
    write(key, level, limit or tonumber(ARGV[3 * i]))
  else
    redis.call('ZREM', key, ARGV[1])
  end
end

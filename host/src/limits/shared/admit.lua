-- Takes what a request needs of all its limits or of none.
-- KEYS: one for each limit
-- ARGV: the request's id, and for how many ms it may be at work; then for each
--   limit whether it is a bucket or of requests at work, the most, and what is needed
-- Returns whether it was taken, 1 or 0, and how each limit stood before: units ×
--   microseconds, or requests at work.
local id, lease = ARGV[1], tonumber(ARGV[2])
local answer = { 1 }
for i, key in ipairs(KEYS) do
  local kind, most, needed = ARGV[3 * i], tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  local level, limit, room
  if kind == 'bucket' then
    level, limit = read(key)
    -- from now on it drains by this one, whether anything is taken or not
    if limit and limit ~= most then
      write(key, level, most)
    end
    room = most * WINDOW - level - needed * WINDOW
  else
    -- of a replica that died they end by themselves
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    level = redis.call('ZCARD', key)
    room = most - level - needed
  end
  if room < 0 then
    answer[1] = 0
  end
  answer[i + 1] = level
end
if answer[1] == 1 then
  for i, key in ipairs(KEYS) do
    if ARGV[3 * i] == 'bucket' then
      write(key, answer[i + 1] + ARGV[3 * i + 2] * WINDOW, tonumber(ARGV[3 * i + 1]))
    else
      redis.call('ZADD', key, now + lease * 1000, id)
      redis.call('PEXPIRE', key, math.max(lease, redis.call('PTTL', key)))
    end
  end
end
return answer

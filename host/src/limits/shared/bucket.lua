-- What both scripts work with; the arithmetic is that of ../bucket.rs. Numbers
-- have 53 bits, which is why limits end at 10^8. The time is the server's, so
-- that it is the same for all replicas, in microseconds.
local WINDOW = 60000000
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- The level of a bucket now, having drained by the limit that was in force, and that
-- limit, where there is one.
local function read(key)
  local held = redis.call('HMGET', key, 'level', 'at', 'limit')
  if not held[1] then
    return 0
  end
  local since = math.max(0, now - held[2])
  return math.max(0, held[1] - since * held[3]), tonumber(held[3])
end

-- Keeps a bucket until it is empty, when there is no need to.
local function write(key, level, limit)
  redis.call('HSET', key, 'level', level, 'at', now, 'limit', limit)
  redis.call('PEXPIRE', key, math.ceil(level / limit / 1000) + 1)
end

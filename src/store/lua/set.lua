-- set: write the link unconditionally.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links
-- ARGV    service, pod, ttl_ms (-1 = persistent)
-- reply   {verdict, owner, pttl, previous}: 'made'
-- Atomic, because the link and the hash must never disagree, and the previous owner must be the
-- one that this call replaced.
local previous = redis.call('GET', KEYS[1])
redis.call('HEXISTS', KEYS[2], ARGV[1]) -- of the wrong type? then fail before anything is written
if ARGV[3] == '-1' then
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return {'made', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), previous or ''}

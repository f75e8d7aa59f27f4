-- try_set: write the link unless another pod owns it.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links, KEYS[3] owner records
-- ARGV    service, pod, ttl_ms (-1 = persistent)
-- reply   {verdict, owner, pttl, previous}: 'made' | 'kept'
-- Atomic, because of two pods that try at once exactly one may win. A link is free if it is absent,
-- if it already names this pod, or if it is temporary and no owner record confirms it.
local owner = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local record = redis.call('HGET', KEYS[3], ARGV[1])
redis.call('HEXISTS', KEYS[2], ARGV[1])
local owned = record and string.match(record, '^(%d+):') == owner
local free = not owner or owner == ARGV[2] or (left ~= -1 and not owned)
if not free then
  return {'kept', owner, left, owner}
end
if ARGV[3] == '-1' then
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return {'made', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), owner or ''}

-- relink: move a user away from a pod that was found dead.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links, KEYS[3] owner records
-- ARGV    service, from_pod, from_persistent (1 | 0), dead_incarnation, to_pod, ttl_ms
-- reply   {verdict, owner, pttl, previous}: 'made' | 'kept' | 'absent'
-- Atomic compare-and-set: of many clients that found the same pod dead one moves the user, and
-- no client moves a user whom a later incarnation has claimed meanwhile.
local owner = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local record = redis.call('HGET', KEYS[3], ARGV[1])
redis.call('HEXISTS', KEYS[2], ARGV[1])
if not owner then
  return {'absent', '', -2, ''}
end
local same = owner == ARGV[2] and (left == -1) == (ARGV[3] == '1')
if same and record then
  local pod, incarnation = string.match(record, '^(%d+):(%d+):')
  same = pod ~= owner or tonumber(incarnation) <= tonumber(ARGV[4])
end
if not same then
  return {'kept', owner, left, owner}
end
redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[6])
redis.call('HDEL', KEYS[2], ARGV[1])
return {'made', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), owner}

-- remove: delete the link at once, or keep it as a hint for a grace period.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links
-- ARGV    service, owner ('' = any), grace_ms (0 = at once)
-- reply   {verdict, owner, pttl, previous}: 'removed' | 'kept' | 'absent'
-- Atomic, because the owner that was compared must be the owner that is removed. The service is
-- removed from the user's hash either way: it lists persistent links only.
local owner = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
redis.call('HEXISTS', KEYS[2], ARGV[1])
if not owner then
  redis.call('HDEL', KEYS[2], ARGV[1])
  return {'absent', '', -2, ''}
end
if ARGV[2] ~= '' and owner ~= ARGV[2] then
  return {'kept', owner, left, owner}
end
if ARGV[3] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
redis.call('HDEL', KEYS[2], ARGV[1])
return {'removed', redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]), owner}

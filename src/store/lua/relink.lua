-- relink: move a user away from a pod that was found dead.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links, KEYS[3] owner records
-- ARGV    service, from_pod, from_persistent (1 | 0), from_record ('' = no process owned the user),
--         dead_incarnation, to_pod, ttl_ms
-- reply   {verdict, owner, pttl, previous, record}: 'made' | 'kept' | 'absent' | 'invalid' record
-- A record that cannot be read may be an owner's: the user stays.
-- Atomic compare-and-set: of many clients that found the same pod dead one moves the user, and
-- no client moves a user whom a process has claimed meanwhile, or a later incarnation owns.
local owner = redis.call('GET', KEYS[1])
local left = redis.call('PTTL', KEYS[1])
local record = redis.call('HGET', KEYS[3], ARGV[1]) or ''
local last = redis.call('HGET', KEYS[3], '#')
local others = redis.call('HLEN', KEYS[3])
others = others - (last and 1 or 0) - (record == '' and 0 or 1)
redis.call('HEXISTS', KEYS[2], ARGV[1])
if not owner then
  return {'absent', '', -2, '', record}
end
last = string.match(last or '', '^%d+$') and tonumber(last) or 0
if last >= 2 ^ 53 then
  last = 0
end
local pod, incarnation, token = string.match(record, '^(%d+):(%d+):(%d+)$')
if record ~= '' and not pod then
  return {'invalid', owner, left, owner, record}
end
token = tonumber(token)
local held = pod == owner and left == -1 and record or ''
local same = owner == ARGV[2] and (left == -1) == (ARGV[3] == '1') and held == ARGV[4]
  and (pod ~= owner or tonumber(incarnation) <= tonumber(ARGV[5]))
if not same then
  return {'kept', owner, left, owner, record}
end
redis.call('SET', KEYS[1], ARGV[6], 'PX', ARGV[7])
redis.call('HDEL', KEYS[2], ARGV[1])
if pod == owner then
  -- Another program may have written the last token.
  if token and token > last then
    redis.call('HSET', KEYS[3], '#', string.format('%.0f', token))
  end
  redis.call('HDEL', KEYS[3], ARGV[1])
  if others == 0 then
    redis.call('PEXPIRE', KEYS[3], 86400000)
  end
end
return {'made', redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), owner, ''}

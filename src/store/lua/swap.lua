-- swap: change a link if it and its ownership record are still what was found.
-- KEYS[1] link, KEYS[2] the user's hash of persistent links, KEYS[3] owner records
-- ARGV    service, found_link ('' = absent), found_persistent (1 | 0), found_record ('' = absent),
--         pod ('' = delete the link), ttl_ms (-1 = persistent), incarnation ('' = no owner), above
-- reply   {verdict, owner, pttl, previous, record}: 'made' | 'removed' | 'kept'; record has the new
--         token of an owner, and previous the last one before | 'invalid': no token is left
-- Atomic compare-and-set: a write that comes late cannot undo what happened meanwhile, and a
-- process releases only what it owns by this very token. Unless an incarnation is named no process owns
-- the user afterwards; tokens are then remembered for a day.
local owner = redis.call('GET', KEYS[1]) or ''
local left = redis.call('PTTL', KEYS[1])
local record = redis.call('HGET', KEYS[3], ARGV[1]) or ''
local last = redis.call('HGET', KEYS[3], '#')
local others = redis.call('HLEN', KEYS[3])
others = others - (last and 1 or 0) - (record == '' and 0 or 1)
redis.call('HEXISTS', KEYS[2], ARGV[1])
local same = owner == ARGV[2] and (left == -1) == (ARGV[3] == '1') and record == ARGV[4]
if not same then
  return {'kept', owner, left, owner, record}
end
local time = redis.call('TIME')
last = string.match(last or '', '^%d+$') and tonumber(last) or 0
if last >= 2 ^ 53 then
  last = 0
end
local token = tonumber(string.match(record, '^%d+:%d+:(%d+)$') or '')
local next = math.max(last + 1, (token or 0) + 1, tonumber(ARGV[8]) + 1,
  time[1] * 1000000 + time[2])
if ARGV[7] ~= '' and next >= 2 ^ 53 then
  return {'invalid', owner, left, owner, record}
end
local text = string.format('%.0f', next)
local mine = ARGV[7] ~= '' and ARGV[5] .. ':' .. ARGV[7] .. ':' .. text or ''
if ARGV[5] == '' then
  redis.call('DEL', KEYS[1])
elseif ARGV[6] == '-1' then
  redis.call('SET', KEYS[1], ARGV[5])
else
  redis.call('SET', KEYS[1], ARGV[5], 'PX', ARGV[6])
end
if ARGV[5] ~= '' and ARGV[6] == '-1' then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[5])
else
  redis.call('HDEL', KEYS[2], ARGV[1])
end
if mine ~= '' then
  redis.call('HSET', KEYS[3], ARGV[1], mine, '#', text)
  redis.call('PERSIST', KEYS[3])
elseif record ~= '' then
  -- Another program may have written the last token.
  if token and token > last then
    redis.call('HSET', KEYS[3], '#', string.format('%.0f', token))
  end
  redis.call('HDEL', KEYS[3], ARGV[1])
  if others == 0 then
    redis.call('PEXPIRE', KEYS[3], 86400000)
  end
end
return {ARGV[5] == '' and 'removed' or 'made', redis.call('GET', KEYS[1]) or '',
  redis.call('PTTL', KEYS[1]), string.format('%.0f', token or last), mine}

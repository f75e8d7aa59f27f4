-- pod_renew: renew a pod's lease and publish its state.
-- KEYS[1] lease hash, KEYS[2] state hash (its name is the event channel too)
-- ARGV    lease, grace, gap (microseconds), pod, incarnation, routing_state, state (a JSON object)
-- reply   {verdict, incarnation, leads, recreated, now}: 'ok', with 1 if this pod is the service's
--         leader now, 1 if its record was lost and is written again, and virtual time |
--         'dead' | 'superseded' by that incarnation
-- Atomic, because a renewal and a death certificate exclude each other for good. A record lost in
-- a failover is written again. The store's time is put into the state. The first renewal of each
-- lease period evicts the pods that have been dead for ten leases; their incarnations stay dead.
-- The lowest pod that renews is the leader. A pod becomes leader if there is none, if it was the
-- leader before, if the leader's lease has expired, or if the leader's index is higher.
local lease, grace, gap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local pod, me = ARGV[4], tonumber(ARGV[5])
local incarnation, dead, sweep = moment('i:' .. pod), moment('x:' .. pod), number('sweep')
local old = redis.call('HGET', KEYS[2], pod)
-- A later process supersedes this one for good, even if that process is certified dead. Otherwise
-- two processes that both came back would take the index from each other forever.
if incarnation > me then
  return {'superseded', text(incarnation), 0, 0, '0'}
end
if dead >= me then
  return {'dead', text(dead), 0, 0, '0'}
end
local deadline = deadline_of(pod, field('d:' .. pod), lease)
tick(lease, grace, gap) -- first, because during a hold no pod is evicted
local gone = {}
if now >= sweep or sweep > now + 10 * lease then
  local all = redis.call('HGETALL', lease_key)
  for i = 1, #all, 2 do
    local other = string.match(all[i], '^d:(%d+)$')
    local over = other and other ~= pod and deadline_of(other, all[i + 1], lease) + 10 * lease
    if over and over < now and hold < now then
      gone[#gone + 1] = other
      put('x:' .. other, text(math.max(incarnation_of(other), moment('x:' .. other))))
    end
  end
  put('sweep', text(now + lease))
end
local spokesman, till = string.match(field('w') or '', '^(%d+):(%d+)$')
local leads = not spokesman or spokesman == pod or tonumber(till) <= now
  or tonumber(till) > now + 10 * lease or tonumber(pod) < tonumber(spokesman)
local read, known = pcall(cjson.decode, old or '')
local changed = deadline <= now or not read or type(known) ~= 'table'
  or known.routingState ~= ARGV[6] or known.incarnation ~= me
put('t', ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[3])
if incarnation < me then
  put_format()
end
put('i:' .. pod, ARGV[5])
local renewed = text(math.max(deadline, now + lease))
put('d:' .. pod, renewed)
if leads then
  put('w', pod .. ':' .. renewed)
end
write()
local stamp = ',"updateTime":' .. text(math.floor(now / 1000)) .. '}'
redis.call('HSET', KEYS[2], pod, string.sub(ARGV[7], 1, -2) .. stamp)
for _, other in ipairs(gone) do
  redis.call('HDEL', lease_key, 'd:' .. other, 'b:' .. other, 'u:' .. other)
  redis.call('HDEL', KEYS[2], other)
end
if changed then
  publish(pod, ARGV[6])
end
return {'ok', ARGV[5], leads and 1 or 0, incarnation < me and 1 or 0, text(now)}

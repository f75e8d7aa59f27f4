-- pod_begin: acquire an incarnation for a pod process.
-- KEYS[1] lease hash, KEYS[2] state hash
-- ARGV    lease, grace, gap (microseconds), pod, nonce, pod_uid
-- reply   {verdict, incarnation, microseconds}: 'ok' | 'busy' with the time to wait
-- Atomic, because of two processes with one index exactly one may begin. It is idempotent: a retry
-- by the same process (same nonce) gets the same incarnation. A container restarted inside one
-- Kubernetes pod (same pod UID) need not wait: Kubernetes runs one at a time. Beginning declares
-- every earlier incarnation dead. An index that no process used need not wait either, even during
-- a hold: neither the leases nor the states know it.
local lease, grace, gap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local pod, nonce, pod_uid = ARGV[4], ARGV[5], ARGV[6]
local incarnation, deadline = incarnation_of(pod), deadline_of(pod, field('d:' .. pod), lease)
local dead = moment('x:' .. pod)
local same_process = field('b:' .. pod) == nonce
local same_pod = pod_uid ~= '' and field('u:' .. pod) == pod_uid
local new = redis.call('EXISTS', lease_key, KEYS[2]) == 0
tick(lease, grace, gap, new)
put_format()
put('t', ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[3])
if same_process and incarnation > dead then
  put('d:' .. pod, text(math.max(deadline, now + lease)))
  write()
  return {'ok', text(incarnation), 0}
end
local till = math.max(deadline + grace, hold)
if incarnation > dead and now <= till and not same_pod then
  write()
  return {'busy', text(incarnation), text(till - now)}
end
local next = math.max(incarnation + 1, dead + 1, now)
put('x:' .. pod, text(math.max(incarnation, dead)))
put('i:' .. pod, text(next))
put('b:' .. pod, nonce)
put('u:' .. pod, pod_uid)
put('d:' .. pod, text(now + lease))
write()
return {'ok', text(next), 0}

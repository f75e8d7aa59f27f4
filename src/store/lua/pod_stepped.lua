-- pod_stepped: a pod found by its own clock that the server's clock stepped forward.
-- KEYS[1] lease hash, KEYS[2] state hash
-- ARGV    lease, grace, gap (microseconds), pod, incarnation, by, after, seen: the clock stepped by
--         so many microseconds after the one moment of its own and not after the other
-- reply   {verdict, incarnation, microseconds}: 'held' for that time | 'unbelieved' |
--         'refused', because the pod is dead or another process holds its index
-- Steps forward that are smaller than the gap look like time to a script, and several of them would
-- use up the grace of every pod. So the hold begins again. A pod whose own clock is bad would report
-- without end, and no pod could be declared dead: after BELIEVED reports in succession, each within
-- QUIET leases of the one before, a pod is believed again once another pod has reported a step, or
-- once it has reported none for so long.
-- A jump as large that was seen after the first moment is that step: it is larger than the gap, or
-- another pod has reported it. The hold does not begin again. It began when the jump was seen or
-- later; the same pod's next step counts from there.
-- Atomic, because a report and a certificate exclude each other: what is held here was not over.
local BELIEVED, QUIET, TOLERANCE = 4, 10, 250000
local lease, grace, gap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local pod, me = ARGV[4], tonumber(ARGV[5])
local by, after, seen = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local incarnation, dead = moment('i:' .. pod), moment('x:' .. pod)
local reporter, count, at = string.match(field('step') or '', '^(%d+):(%d+):(%d+)$')
if incarnation ~= me or dead >= me then
  return {'refused', text(math.max(incarnation, dead)), 0}
end
tick(lease, grace, gap)
local jump, known = string.match(field('jump') or '', '^(%d+):(%d+)$')
jump, known = parse(jump, 2 ^ 52), parse(known, 2 ^ 52)
if jump and known and known > after and known <= now and by <= jump + TOLERANCE then
  write()
  return {'held', ARGV[5], text(math.max(0, hold - now))}
end
count, at = parse(count, 2 ^ 52), parse(at, 2 ^ 52)
local again = reporter == pod and count and at and at <= now and now - at < QUIET * lease
count = again and count + 1 or 1
put('step', pod .. ':' .. text(count) .. ':' .. text(now))
if count > BELIEVED then
  write()
  return {'unbelieved', ARGV[5], 0}
end
begin_hold(lease, grace, last > hold and last)
put('jump', text(by) .. ':' .. text(math.min(seen, now)))
write()
return {'held', ARGV[5], text(hold - now)}

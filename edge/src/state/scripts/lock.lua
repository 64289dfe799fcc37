-- A hash: fence, and while somebody has the lock, holder and until. It outlives the lock, so that
-- fences only grow; the time in them makes them grow when even it was lost.
-- ARGV: holder, ttl, how long the fence is kept. The fence, or nothing.
local old = redis.call('HMGET', KEYS[1], 'fence', 'holder', 'until')
local fence = old[1]
if old[3] and tonumber(old[3]) > now then
    if old[2] ~= ARGV[1] then
        return false
    end
else
    fence = string.format('%.0f', math.max(tonumber(old[1] or 0) + 1, micros))
end
local till = string.format('%.0f', now + ARGV[2])
redis.call('HSET', KEYS[1], 'fence', fence, 'holder', ARGV[1], 'until', till)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return fence

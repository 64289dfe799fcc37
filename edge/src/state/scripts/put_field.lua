-- A hash: each value is when the field expires, a space, and the value proper.
-- ARGV: field, value, ttl, and how many fields there may be.
local ttl, most = tonumber(ARGV[3]), tonumber(ARGV[4])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + ttl) .. ' ' .. ARGV[2])
if redis.call('PTTL', KEYS[1]) < ttl then
    redis.call('PEXPIRE', KEYS[1], ttl)
end
if redis.call('HLEN', KEYS[1]) <= most then
    return 1
end
-- Too many: the expired ones go, then those that expire first, some more than needed, so that this
-- is rare. The one that has just come stays.
local all, living = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #all, 2 do
    local expires = tonumber(string.match(all[i + 1], '^%d+')) or 0
    if expires <= now then
        redis.call('HDEL', KEYS[1], all[i])
    elseif all[i] ~= ARGV[1] then
        living[#living + 1] = { expires, all[i] }
    end
end
if #living + 1 > most then
    table.sort(living, function(a, b)
        return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
    end)
    for i = 1, #living + 1 - (most - math.floor(most / 100)) do
        redis.call('HDEL', KEYS[1], living[i][2])
    end
end
return 1

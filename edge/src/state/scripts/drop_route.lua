-- ARGV: epoch, edge.
local old = redis.call('GET', KEYS[1])
if old and string.sub(old, 1, 20) <= ARGV[1] and string.sub(old, 59) == ARGV[2] then
    redis.call('DEL', KEYS[1])
end
return 1

-- A string: epoch (20 digits), tunnel (36 characters), edge; a space between.
-- ARGV: epoch, tunnel, edge, ttl. 1: it stands; 0: a higher claim, or an equal one of another edge.
local old = redis.call('GET', KEYS[1])
if old then
    local epoch = string.sub(old, 1, 20)
    if epoch > ARGV[1] or (epoch == ARGV[1] and string.sub(old, 59) ~= ARGV[3]) then
        return 0
    end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3], 'PX', ARGV[4])
return 1

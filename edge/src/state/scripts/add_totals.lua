-- A hash of numbers. ARGV: how long it is kept, then field and what is added, again and again.
for i = 2, #ARGV, 2 do
    local added = redis.pcall('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
    if type(added) == 'table' and added.err then
        -- It would be more than a number can hold.
        redis.call('HSET', KEYS[1], ARGV[i], '9223372036854775807')
    end
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return 1

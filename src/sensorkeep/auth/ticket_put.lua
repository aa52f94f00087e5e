-- Keeps a ticket. KEYS: the ticket, the generation of its credential. ARGV: the credential, the seconds of a ticket's
-- life, and of a generation's. A ticket's value: the generation now, the name of the generation, the credential, a line
-- each.
local generation = redis.call('GET', KEYS[2]) or ''
if generation ~= '' then
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
redis.call('SET', KEYS[1], generation .. '\n' .. KEYS[2] .. '\n' .. ARGV[1], 'EX', ARGV[2])

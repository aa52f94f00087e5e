-- Takes a ticket out and returns its credential; nil where there is none, or its credential has another generation now.
local value = redis.call('GETDEL', KEYS[1])
if not value then
  return nil
end
local generation, name, credential = string.match(value, '^([^\n]*)\n([^\n]*)\n(.*)$')
if (redis.call('GET', name) or '') ~= generation then
  return nil
end
return credential

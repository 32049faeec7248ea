#!/bin/sh
# A conversation of redis-cli with the RESP port: redis_cli.sh PORT.
set -eu
cli="redis-cli -p $1"
expect() { # expected command...
    expected=$1
    shift
    got=$("$@")
    [ "$got" = "$expected" ] || { echo "$*: expected '$expected', got '$got'"; exit 1; }
}
expect OK $cli flushall
expect OK $cli set a 1
expect 2 $cli incr a
expect "" $cli get none
expect OK $cli -3 set b 2 EX 100
expect 2 $cli -3 get b
expect "$(printf 'OK\nQUEUED\n3')" sh -c "printf 'multi\nincr a\nexec\n' | $cli"
for i in 1 2 3 4 5; do printf 'SET key:%s %s\r\n' $i $i; done | $cli --pipe | grep -q 'errors: 0, replies: 5'
expect 5 sh -c "$cli --scan --pattern 'key:*' | wc -l | tr -d ' '"
expect snow sh -c "printf snow | $cli -x set s >/dev/null; $cli get s"
$cli --bigkeys | grep -q 'Biggest string'
$cli --memkeys | grep -q 'Biggest string'
$cli info server | grep -q '^firn_version:'
$cli command docs get | grep -q summary
$cli dbsize | grep -q 8

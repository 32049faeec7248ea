//! What clients send that cannot be installed here, byte for byte: the start of a connection of
//! go-redis, lettuce and jedis, and a few commands in their spelling. Replies are compared as bytes
//! too, since that is what the clients parse.
//!
//! A script is taken from the clients' sources (`initConn` in `redis.go`, `RedisHandshake.java`,
//! `Connection.java`). `#` in an expected reply stands for a number, `~` for the rest of a line.

use tokio::io::AsyncReadExt as _;

use crate::resp_client::Resp;
use crate::support::Running;

const HELLO_3: &str = "%8\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.4.0\r\n\
     $5\r\nproto\r\n:3\r\n$2\r\nid\r\n:#\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n\
     $4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n$12\r\nfirn_version\r\n~\r\n~\r\n";
const HELLO_2: &str = "*16\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.4.0\r\n\
     $5\r\nproto\r\n:2\r\n$2\r\nid\r\n:#\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n\
     $4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n$12\r\nfirn_version\r\n~\r\n~\r\n";

/// What is sent at once, and what is answered.
type Step = (&'static str, &'static [&'static str]);

/// go-redis 9: `hello` alone, then a pipeline; every name in lower case. Hand-shakes for maintenance
/// are tried and may be refused. A transaction is one write.
const GO_REDIS: &[Step] = &[
    ("*2\r\n$5\r\nhello\r\n$1\r\n3\r\n", &[HELLO_3]),
    (
        "*2\r\n$6\r\nselect\r\n$1\r\n2\r\n*3\r\n$6\r\nclient\r\n$7\r\nsetname\r\n$3\r\napp\r\n",
        &["+OK\r\n", "+OK\r\n"],
    ),
    (
        "*5\r\n$6\r\nclient\r\n$19\r\nmaint_notifications\r\n$2\r\non\r\n$20\r\nmoving-endpoint-type\r\n\
         $11\r\ninternal-ip\r\n",
        &["-ERR unknown subcommand 'maint_notifications'. Try CLIENT HELP.\r\n"],
    ),
    (
        "*4\r\n$6\r\nclient\r\n$7\r\nsetinfo\r\n$8\r\nLIB-NAME\r\n$19\r\ngo-redis(,go1.22.2)\r\n\
         *4\r\n$6\r\nclient\r\n$7\r\nsetinfo\r\n$7\r\nLIB-VER\r\n$6\r\n9.22.0\r\n",
        &["+OK\r\n", "+OK\r\n"],
    ),
    (
        "*5\r\n$3\r\nset\r\n$1\r\nk\r\n$1\r\nv\r\n$2\r\nex\r\n$3\r\n100\r\n",
        &["+OK\r\n"],
    ),
    (
        "*2\r\n$3\r\nget\r\n$1\r\nk\r\n*2\r\n$3\r\nget\r\n$4\r\nnone\r\n",
        &["$1\r\nv\r\n", "_\r\n"],
    ),
    ("*2\r\n$5\r\nwatch\r\n$1\r\nk\r\n", &["+OK\r\n"]),
    (
        "*1\r\n$5\r\nmulti\r\n*2\r\n$4\r\nincr\r\n$1\r\nn\r\n*2\r\n$3\r\nttl\r\n$1\r\nk\r\n*1\r\n$4\r\nexec\r\n",
        &[
            "+OK\r\n",
            "+QUEUED\r\n",
            "+QUEUED\r\n",
            "*2\r\n:1\r\n:#\r\n",
        ],
    ),
    (
        "*6\r\n$4\r\nscan\r\n$1\r\n0\r\n$5\r\nmatch\r\n$2\r\nk*\r\n$5\r\ncount\r\n$2\r\n10\r\n",
        &["*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n"],
    ),
    (
        "*2\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n",
        &[">3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n"],
    ),
    ("*1\r\n$4\r\nping\r\n", &["+PONG\r\n"]),
];

/// lettuce 7: `HELLO 3`, then two writes whose failures it ignores.
const LETTUCE: &[Step] = &[
    ("*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n", &[HELLO_3]),
    (
        "*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nlib-name\r\n$7\r\nLettuce\r\n\
         *4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$7\r\nlib-ver\r\n$21\r\n7.8.0.RELEASE/abc1234\r\n",
        &["+OK\r\n", "+OK\r\n"],
    ),
    (
        "*5\r\n$6\r\nCLIENT\r\n$19\r\nMAINT_NOTIFICATIONS\r\n$2\r\non\r\n$20\r\nmoving-endpoint-type\r\n\
         $4\r\nnone\r\n",
        &["-ERR unknown subcommand 'MAINT_NOTIFICATIONS'. Try CLIENT HELP.\r\n"],
    ),
    (
        "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        &["+OK\r\n", "$1\r\nv\r\n"],
    ),
    (
        "*1\r\n$5\r\nMULTI\r\n*3\r\n$6\r\nEXPIRE\r\n$1\r\nk\r\n$3\r\n100\r\n*1\r\n$4\r\nEXEC\r\n",
        &["+OK\r\n", "+QUEUED\r\n", "*1\r\n:1\r\n"],
    ),
    (
        "*3\r\n$4\r\nSCAN\r\n$1\r\n0\r\n$5\r\nCOUNT\r\n",
        &["-ERR syntax error\r\n"],
    ),
    (
        "*4\r\n$4\r\nSCAN\r\n$1\r\n0\r\n$5\r\nCOUNT\r\n$2\r\n50\r\n",
        &["*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n"],
    ),
    ("*1\r\n$4\r\nQUIT\r\n", &["+OK\r\n"]),
];

/// The same against a user with a password: `HELLO 3 AUTH`, and RESP2 with a ping as the fallback.
const LETTUCE_AUTH: &[Step] = &[
    (
        "*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$7\r\ndefault\r\n$6\r\nsecret\r\n",
        &[HELLO_3],
    ),
    ("*2\r\n$5\r\nHELLO\r\n$1\r\n2\r\n", &[HELLO_2]),
    ("*1\r\n$4\r\nPING\r\n", &["+PONG\r\n"]),
];

/// jedis: `HELLO 3` with its answer awaited, then everything else in one write.
const JEDIS: &[Step] = &[
    ("*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n", &[HELLO_3]),
    (
        "*2\r\n$6\r\nSELECT\r\n$1\r\n1\r\n\
         *4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nLIB-NAME\r\n$5\r\njedis\r\n\
         *4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$7\r\nLIB-VER\r\n$5\r\n7.2.0\r\n",
        &["+OK\r\n", "+OK\r\n", "+OK\r\n"],
    ),
    (
        "*5\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n$2\r\nPX\r\n$6\r\n100000\r\n",
        &["+OK\r\n"],
    ),
    ("*1\r\n$5\r\nMULTI\r\n", &["+OK\r\n"]),
    (
        "*3\r\n$6\r\nAPPEND\r\n$1\r\nk\r\n$1\r\n!\r\n*2\r\n$4\r\nPTTL\r\n$1\r\nk\r\n",
        &["+QUEUED\r\n", "+QUEUED\r\n"],
    ),
    ("*1\r\n$4\r\nEXEC\r\n", &["*2\r\n:2\r\n:#\r\n"]),
    (
        "*6\r\n$4\r\nSCAN\r\n$1\r\n0\r\n$5\r\nMATCH\r\n$1\r\n*\r\n$5\r\nCOUNT\r\n$3\r\n100\r\n",
        &["*2\r\n$1\r\n0\r\n*1\r\n$1\r\nk\r\n"],
    ),
    (
        "*2\r\n$4\r\nHGET\r\n$1\r\nk\r\n",
        &["-ERR unknown command 'HGET', with args beginning with: 'k' \r\n"],
    ),
];

/// An older jedis, and lettuce that was told to: RESP2 without `HELLO`.
const JEDIS_RESP2: &[Step] = &[
    (
        "*4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$8\r\nLIB-NAME\r\n$5\r\njedis\r\n\
         *4\r\n$6\r\nCLIENT\r\n$7\r\nSETINFO\r\n$7\r\nLIB-VER\r\n$5\r\n5.2.0\r\n",
        &["+OK\r\n", "+OK\r\n"],
    ),
    (
        "*2\r\n$3\r\nGET\r\n$4\r\nnone\r\n*1\r\n$5\r\nMULTI\r\n*1\r\n$4\r\nEXEC\r\n",
        &["$-1\r\n", "+OK\r\n", "*0\r\n"],
    ),
    (
        "*2\r\n$9\r\nSUBSCRIBE\r\n$4\r\nnews\r\n*1\r\n$4\r\nPING\r\n",
        &[
            "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n",
            "*2\r\n$4\r\npong\r\n$0\r\n\r\n",
        ],
    ),
];

/// How many bytes at the start of `got` the pattern takes; `None` if it wants more, an error if it
/// does not fit.
fn fits(pattern: &str, got: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    for wanted in pattern.bytes() {
        match wanted {
            b'#' | b'~' => {
                let run = got[at..].iter().take_while(|b| match wanted {
                    b'#' => b.is_ascii_digit(),
                    _ => **b != b'\r',
                });
                at += run.count();
            }
            _ => {
                let Some(byte) = got.get(at) else {
                    return Ok(None);
                };
                if *byte != wanted {
                    return Err(());
                }
                at += 1;
            }
        }
    }
    Ok(Some(at))
}

async fn replay(name: &str, server: &Running, steps: &[Step], piece: usize) {
    let mut client = Resp::connect(server.resp.unwrap()).await;
    let mut got = Vec::new();
    for (sent, replies) in steps {
        for bytes in sent.as_bytes().chunks(piece) {
            client.send(bytes).await;
        }
        for reply in *replies {
            loop {
                let told = || String::from_utf8_lossy(&got).into_owned();
                match fits(reply, &got) {
                    Ok(Some(used)) => {
                        got.drain(..used);
                        break;
                    }
                    Ok(None) => {
                        let reading = client.stream.read_buf(&mut got);
                        let limit = std::time::Duration::from_secs(30);
                        let read = tokio::time::timeout(limit, reading).await;
                        assert_ne!(read.expect("no answer").unwrap(), 0, "{name}: closed");
                    }
                    Err(()) => panic!("{name}: {sent:?}: wanted {reply:?}, got {:?}", told()),
                }
            }
        }
        assert!(got.is_empty(), "{name}: more than was asked for: {got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_conversations() {
    for (name, steps) in [
        ("go-redis", GO_REDIS),
        ("lettuce", LETTUCE),
        ("lettuce with a password", LETTUCE_AUTH),
        ("jedis", JEDIS),
        ("jedis, RESP2", JEDIS_RESP2),
    ] {
        // Whole writes, and writes that arrive in pieces.
        for piece in [usize::MAX, 7, 1] {
            let server = Running::start().await;
            replay(name, &server, steps, piece).await;
            server.stop().await;
        }
    }
}

//! The same random commands to this server and to Redis: every reply is the same, times to live
//! within a tick. Skipped where there is no `redis-server`.
//!
//! `RESP_SEED` chooses the sequence, `RESP_COMMANDS` how many commands.

#![allow(clippy::print_stderr, reason = "says that it is skipped")]

use std::process::{Child, Command, Stdio};

use firn_io::rng::Rng;

use crate::resp_client::{Reply, Resp, ok};
use crate::support::Running;

/// A Redis of our own. It goes when the test goes.
struct Redis {
    child: Child,
    _dir: tempfile::TempDir,
    address: std::net::SocketAddr,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Redis {
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let child = Command::new("redis-server")
            .args(["--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("skipped: redis-server cannot be run: {error}");
                return None;
            }
        };
        let redis = Self {
            child,
            _dir: dir,
            address,
        };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Some(redis);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("redis-server did not start");
    }
}

/// Chooses words.
struct Choice(Rng);

impl Choice {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len())]
    }

    fn key(&mut self) -> String {
        format!("k{}", self.below(6))
    }

    fn value(&mut self) -> String {
        match self.below(12) {
            0 => String::new(),
            1 => "9223372036854775807".into(),
            2 => "-9223372036854775808".into(),
            3 => "3.25".into(),
            4 => "x".repeat(self.below(300)),
            5 => "snow\r\n\u{1}\u{ff}".into(),
            6 => "0".into(),
            7 => "1e3".into(),
            8 => " 12".into(),
            _ => self.below(1_000).to_string(),
        }
    }

    fn number(&mut self) -> String {
        match self.below(14) {
            0 => "9223372036854775807".into(),
            1 => "-9223372036854775808".into(),
            2 => "9223372036854775808".into(),
            3 => "1.5".into(),
            4 => String::new(),
            5 => "abc".into(),
            6 => "+1".into(),
            7 => "-0".into(),
            8 => "-1".into(),
            9 => "0".into(),
            _ => self.below(40).to_string(),
        }
    }

    fn fraction(&mut self) -> String {
        match self.below(10) {
            0 => "abc".into(),
            1 => "1e2".into(),
            2 => "inf".into(),
            3 => "-0.1".into(),
            4 => "0.1".into(),
            5 => "3.0".into(),
            6 => "1e-20".into(),
            7 => "123456789.987654321".into(),
            _ => format!("{}.{}", self.below(100), self.below(1_000)),
        }
    }

    /// A time to live: far away, past, or nonsense.
    fn ttl(&mut self) -> String {
        match self.below(10) {
            0 => "0".into(),
            1 => "-1".into(),
            2 => "9223372036854775807".into(),
            3 => "x".into(),
            _ => (100_000 + self.below(100_000)).to_string(),
        }
    }

    fn time(&mut self) -> String {
        match self.below(8) {
            0 => "1".into(),
            1 => "-5".into(),
            _ => (4_000_000_000_u64 + self.below(1_000) as u64).to_string(),
        }
    }

    fn expiry(&mut self, words: &mut Vec<String>) {
        let option = self.of(&["EX", "PX", "EXAT", "PXAT", "ex", "Ex"]);
        words.push(option.into());
        match option {
            "EXAT" => words.push(self.time()),
            "PXAT" => words.push(format!("{}000", self.time())),
            "PX" => words.push(format!("{}000", self.ttl())),
            _ => words.push(self.ttl()),
        }
    }

    fn command(&mut self) -> Vec<String> {
        let key = self.key();
        let mut words: Vec<String> = Vec::new();
        let mut put = |list: &[&str]| words.extend(list.iter().map(|word| (*word).to_owned()));
        match self.below(56) {
            0..=4 => {
                put(&["SET", &key, &self.value()]);
                for _ in 0..self.below(3) {
                    match self.below(6) {
                        0 => words.push("NX".into()),
                        1 => words.push("xx".into()),
                        2 => words.push("GET".into()),
                        3 => words.push("KEEPTTL".into()),
                        4 => words.push("PERSIST".into()),
                        _ => self.expiry(&mut words),
                    }
                }
            }
            5..=7 => put(&["GET", &key]),
            8 => put(&["GETSET", &key, &self.value()]),
            9 => put(&["GETDEL", &key]),
            10 => {
                put(&["GETEX", &key]);
                match self.below(3) {
                    0 => words.push("PERSIST".into()),
                    1 => self.expiry(&mut words),
                    _ => {}
                }
            }
            11 => put(&["MGET", &key, &self.key(), "none"]),
            12 => put(&["MSET", &key, &self.value(), &self.key(), &self.value()]),
            13 => put(&["MSETNX", &key, &self.value(), &self.key(), &self.value()]),
            14 => put(&["SETNX", &key, &self.value()]),
            15 => put(&["SETEX", &key, &self.ttl(), &self.value()]),
            16 => put(&["PSETEX", &key, &format!("{}000", self.ttl()), &self.value()]),
            17 => put(&["STRLEN", &key]),
            18 => put(&["APPEND", &key, &self.value()]),
            19 => put(&["GETRANGE", &key, &self.number(), &self.number()]),
            20 => put(&["SUBSTR", &key, &self.number(), &self.number()]),
            21 => {
                let offset = self.below(40).to_string();
                let offset = if self.below(5) == 0 {
                    self.number()
                } else {
                    offset
                };
                put(&["SETRANGE", &key, &offset, &self.value()]);
            }
            22 => put(&["INCR", &key]),
            23 => put(&["DECR", &key]),
            24 => put(&["INCRBY", &key, &self.number()]),
            25 => put(&["DECRBY", &key, &self.number()]),
            26..=27 => put(&["INCRBYFLOAT", &key, &self.fraction()]),
            28 => put(&["DEL", &key, &self.key()]),
            29 => put(&["UNLINK", &key, &key]),
            30 => put(&["EXISTS", &key, &key, &self.key()]),
            31 => put(&["TOUCH", &key, &self.key()]),
            32 => put(&["TYPE", &key]),
            33 | 34 => {
                let name = self.of(&["EXPIRE", "PEXPIRE"]);
                let zeros = if name == "EXPIRE" { "" } else { "000" };
                put(&[name, &key, &format!("{}{zeros}", self.ttl())]);
                for _ in 0..self.below(3) {
                    words.push(self.of(&["NX", "XX", "GT", "LT", "ZZ"]).into());
                }
            }
            35 => {
                let name = self.of(&["EXPIREAT", "PEXPIREAT"]);
                let zeros = if name == "EXPIREAT" { "" } else { "000" };
                put(&[name, &key, &format!("{}{zeros}", self.time())]);
            }
            36 => put(&["TTL", &key]),
            37 => put(&["PTTL", &key]),
            38 => put(&[self.of(&["EXPIRETIME", "PEXPIRETIME"]), &key]),
            39 => put(&["PERSIST", &key]),
            40 => put(&[self.of(&["RENAME", "RENAMENX"]), &key, &self.key()]),
            41 => {
                put(&["COPY", &key, &self.key()]);
                match self.below(5) {
                    0 => put_all(&mut words, &["REPLACE"]),
                    1 => put_all(&mut words, &["DB", "1"]),
                    2 => put_all(&mut words, &["DB", "99"]),
                    _ => {}
                }
            }
            42 => put(&["KEYS", self.of(&["*", "k?", "k[1-3]", "k\\1", "x*", "*1"])]),
            43 => put(&["DBSIZE"]),
            44 => match self.below(6) {
                0 => put(&[
                    self.of(&["FLUSHDB", "FLUSHALL"]),
                    self.of(&["ASYNC", "SYNC", "NOW"]),
                ]),
                _ => put(&["SELECT", self.of(&["0", "0", "1", "16", "x"])]),
            },
            45 => match self.below(8) {
                0 => put(&["WATCH", &key]),
                1 => put(&["UNWATCH"]),
                2 | 3 => put(&["MULTI"]),
                4 => put(&["DISCARD"]),
                _ => put(&["EXEC"]),
            },
            46 => match self.below(10) {
                0 => put(&["ECHO", &self.value()]),
                1 => put(&["PING", &self.value()]),
                2 => put(&["CLIENT", "GETNAME"]),
                3 => put(&["CLIENT", "NOSUCH"]),
                4 => put(&["OBJECT", "REFCOUNT", "none"]),
                5 => put(&["CONFIG", "SET", "nosuch", "1"]),
                6 => put(&["WAIT", "0", "0"]),
                7 => put(&["LASTSAVE", "x"]),
                8 => put(&["HELLO", "4"]),
                _ => put(&["AUTH", self.of(&["default", "other"]), "x"]),
            },
            47 => match self.below(8) {
                0 => put(&["NOSUCH", &key, &self.value()]),
                1 => put(&["GET"]),
                2 => put(&["SET", &key]),
                3 => put(&["MSET", &key]),
                4 => put(&["EXPIRE", &key]),
                5 => put(&["CLIENT", "SETNAME"]),
                6 => put(&["RENAME", &key]),
                _ => put(&["CLIENT", "SETNAME", self.of(&["me", "a b"])]),
            },
            // The order is all that differs.
            48 => {
                put(&["SCAN", self.of(&["0", "0", "0", "x", "-0", "1.5", ""])]);
                for _ in 0..self.below(3) {
                    match self.below(5) {
                        0 => put_all(
                            &mut words,
                            &["MATCH", self.of(&["k*", "*", "k[13]", "none"])],
                        ),
                        1 => put_all(&mut words, &["COUNT", "1000"]),
                        2 => put_all(&mut words, &["count", &self.number()]),
                        3 => put_all(
                            &mut words,
                            &["TYPE", self.of(&["string", "String", "list"])],
                        ),
                        _ => words.push(self.of(&["MATCH", "COUNT", "NOSUCH"]).into()),
                    }
                }
                // All of them in one page: others end there and here at other keys.
                put_all(&mut words, &["COUNT", "1000"]);
            }
            49 => match self.below(10) {
                0 => put(&["OBJECT", "HELP", "x"]),
                1 => put(&["OBJECT", "REFCOUNT"]),
                2 => put(&["OBJECT", "FREQ", &key]),
                3 => put(&[
                    "OBJECT",
                    self.of(&["ENCODING", "IDLETIME", "NOSUCH"]),
                    "none",
                ]),
                4 => put(&["OBJECT", "ENCODING"]),
                5 => put(&["MEMORY", "USAGE", "none"]),
                6 => put(&["MEMORY", "USAGE", "none", "SAMPLES", &self.number()]),
                7 => put(&["MEMORY", "USAGE", &key, "NOSUCH", "1"]),
                8 => put(&["DUMP", "none"]),
                _ => put(&["OBJECT"]),
            },
            50 => match self.below(12) {
                0 => put(&["COMMAND", "GETKEYS", "MSET", &key, "1", "b", "2"]),
                1 => put(&["COMMAND", "GETKEYS", "GET", "a", "b"]),
                2 => put(&["COMMAND", "GETKEYS", "PING", "x"]),
                3 => put(&["COMMAND", "GETKEYS", "NOSUCH", &key]),
                4 => put(&["COMMAND", "INFO", "nosuch"]),
                5 => put(&["COMMAND", "DOCS", "nosuch"]),
                6 => put(&["COMMAND", "NOSUCH"]),
                7 => put(&["COMMAND", "LIST", "FILTERBY", "PATTERN", "xx*"]),
                8 => put(&["COMMAND", "LIST", "NOSUCH", "PATTERN", "xx*"]),
                9 => put(&["COMMAND", "LIST", "FILTERBY", "NOSUCH", "xx*"]),
                10 => put(&["COMMAND", "GETKEYS"]),
                _ => put(&[
                    "COMMAND",
                    "GETKEYS",
                    self.of(&["RENAME", "COPY", "DEL"]),
                    "a",
                    "b",
                ]),
            },
            51 => match self.below(12) {
                0 => put(&["CONFIG", "GET", self.of(&["save", "nosuch", "databases"])]),
                1 => put(&["CONFIG", "GET"]),
                2 => put(&["CONFIG", "SET", "slowlog-max-len", &self.number()]),
                3 => put(&["CONFIG", "SET", "slowlog-max-len"]),
                4 => put(&["CONFIG", "SET", "slowlog-log-slower-than", "-2"]),
                5 => put(&[
                    "CONFIG",
                    "SET",
                    "slowlog-max-len",
                    "128",
                    "slowlog-max-len",
                    "1",
                ]),
                6 => put(&[
                    "CONFIG",
                    "SET",
                    "notify-keyspace-events",
                    self.of(&["KEA", "", "Kg$", "q", "A", "Ex"]),
                ]),
                7 => put(&["CONFIG", "GET", "notify-keyspace-events"]),
                8 => put(&["CONFIG", "NOSUCH", "x"]),
                9 => put(&["CONFIG"]),
                10 => put(&["CONFIG", "RESETSTAT", "x"]),
                _ => put(&["CONFIG", "RESETSTAT"]),
            },
            52 => match self.below(20) {
                0 => put(&["CLIENT", "REPLY", "NOSUCH"]),
                1 => put(&["CLIENT", "KILL", "1.2.3.4:5"]),
                2 => put(&["CLIENT", "KILL", "ID", "0"]),
                3 => put(&["CLIENT", "KILL", "ID", "999999"]),
                4 => put(&["CLIENT", "KILL", "NOSUCH", "1"]),
                5 => put(&["CLIENT", "KILL", "TYPE", "nosuch"]),
                6 => put(&["CLIENT", "KILL", "ADDR", "1.2.3.4:5", "SKIPME"]),
                7 => put(&["CLIENT", "KILL", "USER", "nobody"]),
                8 => put(&["CLIENT", "LIST", "TYPE", "nosuch"]),
                9 => put(&["CLIENT", "LIST", "ID", "x"]),
                10 => put(&["CLIENT", "LIST", "ID", "999999"]),
                11 => put(&["CLIENT", "NO-EVICT", self.of(&["ON", "off", "x"])]),
                12 => put(&["CLIENT"]),
                13 => put(&["CLIENT", "ID", "x"]),
                14 => put(&["CLIENT", "LIST", "NOSUCH"]),
                15 => put(&["HELLO", self.of(&["x", "1", "2 2"])]),
                16 => put(&["HELLO", "3", "NOSUCH"]),
                17 => put(&["HELLO", "3", "SETNAME"]),
                18 => put(&["HELLO", "3", "SETNAME", "a b"]),
                _ => put(&["HELLO", "3", "AUTH", "other", "x"]),
            },
            53 => match self.below(16) {
                0 => put(&["SLOWLOG", "GET", self.of(&["-2", "x", "0"])]),
                1 => put(&["SLOWLOG", self.of(&["RESET", "NOSUCH", "LEN"]), "x"]),
                2 => put(&["SLOWLOG"]),
                3 => put(&["LATENCY", self.of(&["LATEST", "RESET", "NOSUCH"])]),
                4 => put(&["LATENCY", "HISTORY", "none"]),
                5 => put(&["ROLE", "x"]),
                6 => put(&["WAIT", self.of(&["x", "0"]), self.of(&["x", "-1", "0"])]),
                7 => put(&["PUBLISH", "nobody", "x"]),
                8 => put(&["PUBSUB", "CHANNELS", "x*"]),
                9 => put(&["PUBSUB", "NUMSUB", "a", "b"]),
                10 => put(&["PUBSUB", "NUMPAT"]),
                11 => put(&["PUBSUB", self.of(&["NOSUCH", "NUMPAT"]), "x"]),
                12 => put(&["CLUSTER", "NOSUCH"]),
                13 => put(&["ACL", self.of(&["WHOAMI", "NOSUCH"])]),
                14 => put(&["BGSAVE", "NOSUCH"]),
                _ => put(&["TIME", "x"]),
            },
            54 => match self.below(8) {
                0 => put(&["RESTORE", &key, "0", "nonsense"]),
                1 => put(&["RESTORE", &key, &self.number(), "nonsense", "NOSUCH"]),
                2 => put(&["RESTORE", &key, "-1", "x", "REPLACE"]),
                3 => put(&[
                    "RESTORE",
                    &key,
                    "0",
                    "x",
                    "REPLACE",
                    "IDLETIME",
                    &self.number(),
                ]),
                4 => put(&["RESTORE", &key, "0", "x", "REPLACE", "FREQ", "256"]),
                5 => put(&["RANDOMKEY", "x"]),
                6 => put(&["FLUSHALL", "SYNC", "ASYNC"]),
                _ => put(&[
                    "COPY",
                    &key,
                    &self.key(),
                    self.of(&["DB", "NOSUCH", "REPLACE"]),
                ]),
            },
            // Any command with any arguments.
            _ => {
                let name = self.of(&[
                    "GET",
                    "SET",
                    "SETNX",
                    "SETEX",
                    "PSETEX",
                    "GETSET",
                    "GETDEL",
                    "GETEX",
                    "MGET",
                    "MSET",
                    "MSETNX",
                    "STRLEN",
                    "APPEND",
                    "GETRANGE",
                    "SETRANGE",
                    "INCR",
                    "INCRBY",
                    "DECRBY",
                    "INCRBYFLOAT",
                    "DEL",
                    "EXISTS",
                    "TYPE",
                    "EXPIRE",
                    "PEXPIRE",
                    "EXPIREAT",
                    "PEXPIREAT",
                    "TTL",
                    "EXPIRETIME",
                    "PERSIST",
                    "RENAME",
                    "RENAMENX",
                    "COPY",
                    "TOUCH",
                    "KEYS",
                    "DBSIZE",
                    "SELECT",
                    "ECHO",
                    "PING",
                    "WATCH",
                    "UNWATCH",
                    "LASTSAVE",
                    "SUBSTR",
                    "DUMP",
                ]);
                put(&[name]);
                for _ in 0..self.below(5) {
                    let word = match self.below(5) {
                        0 | 1 => self.key(),
                        2 => self.value(),
                        3 => self.number(),
                        _ => self
                            .of(&[
                                "NX", "XX", "GET", "EX", "PX", "EXAT", "KEEPTTL", "PERSIST", "GT",
                                "DB", "REPLACE",
                            ])
                            .into(),
                    };
                    words.push(word);
                }
            }
        }
        words
    }
}

fn put_all(words: &mut Vec<String>, list: &[&str]) {
    words.extend(list.iter().map(|word| (*word).to_owned()));
}

/// Whether the replies say the same.
fn same(words: &[String], ours: &Reply, theirs: &Reply) -> bool {
    let name = words[0].to_uppercase();
    match (ours, theirs) {
        (Reply::Array(a), Reply::Array(b)) if name == "KEYS" => {
            let sorted = |list: &[Reply]| {
                let mut texts: Vec<_> = list.iter().map(Reply::text).collect();
                texts.sort();
                texts
            };
            sorted(a) == sorted(b)
        }
        (Reply::Int(a), Reply::Int(b)) if name.ends_with("TTL") || name.ends_with("EXPIRETIME") => {
            let tick = if name.starts_with('P') { 2_000 } else { 2 };
            (*a < 0) == (*b < 0) && (a - b).abs() <= tick
        }
        // Cursor, then keys in any order.
        (Reply::Array(a), Reply::Array(b)) if name == "SCAN" => {
            let sorted = |list: &[Reply]| {
                let mut texts: Vec<_> = list[1].items().iter().map(Reply::text).collect();
                texts.sort();
                texts
            };
            a[0] == b[0] && sorted(a) == sorted(b)
        }
        // The version of the format is another; what RESTORE takes is tested elsewhere.
        (Reply::Bulk(_), Reply::Bulk(_)) if name == "DUMP" => true,
        // Ours says so too, but not at the same moment.
        (Reply::Int(_), Reply::Int(_)) if name == "LASTSAVE" => true,
        // Redis counts keys that have expired until it comes across them.
        (Reply::Int(a), Reply::Int(b)) if name == "DBSIZE" => a <= b,
        _ => ours == theirs,
    }
}

async fn compare(seed: u64, commands: usize, version: u8, redis: &Redis, server: &Running) {
    let mut ours = Resp::connect(server.resp.unwrap()).await;
    let mut theirs = Resp::connect(redis.address).await;
    for side in [&mut ours, &mut theirs] {
        assert_eq!(side.line("FLUSHALL").await, ok());
        if version == 3 {
            side.line("HELLO 3").await;
        }
    }
    let mut choice = Choice(Rng::new(seed));
    // The commands that wait for EXEC: their replies come with it.
    let mut queued: Option<Vec<Vec<String>>> = None;
    let mut differences = Vec::new();
    for number in 0..commands {
        let words = choice.command();
        let texts: Vec<&str> = words.iter().map(String::as_str).collect();
        let (a, b) = (ours.run(&texts).await, theirs.run(&texts).await);
        let told = || format!("seed {seed}, command {number}: {words:?}: ours {a:?}, theirs {b:?}");
        match (&a, &b, words[0].as_str()) {
            (Reply::Array(x), Reply::Array(y), "EXEC") => {
                let list = queued.take().unwrap();
                assert_eq!((x.len(), y.len()), (list.len(), list.len()), "{}", told());
                for ((x, y), words) in x.iter().zip(y).zip(&list) {
                    assert!(same(words, x, y), "within EXEC, {words:?}: {}", told());
                }
            }
            _ => {
                if !same(&words, &a, &b) {
                    // The state may agree all the same: a few more say more.
                    differences.push(told());
                    assert!(differences.len() < 8, "{differences:#?}");
                }
                if a == Reply::Simple("QUEUED".into()) {
                    queued.as_mut().unwrap().push(words);
                } else if words[0] == "MULTI" && a == ok() {
                    queued = Some(Vec::new());
                } else if matches!(words[0].as_str(), "EXEC" | "DISCARD") {
                    queued = None;
                }
            }
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
}

fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_are_those_of_redis() {
    let Some(redis) = Redis::start().await else {
        return;
    };
    let server = Running::start_with(|config| {
        config.durability = firn_engine::Durability::Buffered;
    })
    .await;
    let commands = setting("RESP_COMMANDS", 4_000) as usize;
    let seed = setting("RESP_SEED", 1);
    compare(seed, commands, 2, &redis, &server).await;
    compare(seed + 1, commands, 3, &redis, &server).await;
    server.stop().await;
}
